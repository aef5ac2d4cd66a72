"""A move of an engine with its audit row, compared with a plain `Model.save()` of an engine without an audit row."""

import statistics
import time
from collections.abc import Callable

from django.db import transaction

from audit import actors
from audit.actions import Action
from bench import registry
from engines.lifecycle import moves
from engines.models import Engine, Status

LIMIT = 0.95
MOVES = {Status.RUNNING: (Status.SLEEPING, Action.SLEEP), Status.SLEEPING: (Status.RUNNING, Action.WAKE)}


def _move(engine: Engine) -> None:
    status, action = MOVES[Status(engine.status)]
    moves.move(engine, status, action, by=actors.SYSTEM, metadata={}, extra={})
    engine.status, engine.seq = status, engine.seq + 1


def _save(engine: Engine) -> None:
    engine.status, engine.seq = MOVES[Status(engine.status)][0], engine.seq + 1
    engine.save()


def _timed(call: Callable[[Engine], None], engine: Engine) -> float:
    began = time.perf_counter()
    call(engine)
    return time.perf_counter() - began


def measure(rounds: int, count: int) -> dict[str, list[tuple[float, float]]]:
    """By transaction mode, a pair per round: seconds of the median move and of the median save. Moves and saves alternate."""
    modes = {"autocommit": (_move, _save), "atomic": (transaction.atomic(_move), transaction.atomic(_save))}
    results: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    with registry.product({}, 2) as (product, _):
        moved, saved = Engine.objects.filter(product=product)
        for _ in range(rounds):
            for mode, (move, save) in modes.items():
                pairs = [(_timed(move, moved), _timed(save, saved)) for _ in range(count)]
                ours, theirs = zip(*pairs, strict=True)
                results[mode].append((statistics.median(ours), statistics.median(theirs)))
    return results


def report(results: dict[str, list[tuple[float, float]]]) -> tuple[str, bool]:
    """The table (medians of the rounds), and whether the limit holds."""
    lines, holds = [f"{'':12}   move ms   save ms   ratio"], True
    for mode, rounds in results.items():
        ratio = statistics.median(ours / theirs for ours, theirs in rounds)
        ours, theirs = (statistics.median(both[side] for both in rounds) * 1000 for side in (0, 1))
        verdict = "PASS" if ratio <= LIMIT else "FAIL"
        lines.append(f"{mode:12} {ours:9.2f} {theirs:9.2f} {ratio:7.2f}  {verdict} (at most {LIMIT})")
        holds &= ratio <= LIMIT
    return "\n".join(lines), holds
