"""Probes: the cost of a probe of a good engine and of hostile ones, and the load of `health` in a deployment with both kinds.

All engines are instances of the memory backend. Their server is a process of its own.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import psutil
from django.core.management.base import CommandError
from django.db import connection

from bench import load, servers
from bench.hostile_answers import ANSWERS
from bench.load import Finding
from bench.own_deployment import Own
from common.settings import settings
from engines.backends.base import BackendUnavailable, PortTaken, Ref, Spec
from engines.backends.memory import Behaviour, MemoryBackend
from engines.health import probes
from engines.health.probes import Result, Target

SHARE = 0.10  # of a processor, at most, for the process `health`
HOSTILE_CPU_S = 0.1  # at most, for a probe of a hostile engine
UP_S = 30.0
KEY_HASH = "0" * 64
TICK_S = 5.0  # between two starts of the task that probes the due engines
LATE_S = 1.0  # a result may come so much later than the interval and the tick allow


@dataclass(frozen=True)
class Cost:
    """Seconds of processor time of our own process, and seconds on the clock."""

    cpu_s: float
    wall_s: float


# -- a probe -------------------------------------------------------------------------------------------------------------


@contextmanager
def instances(count: int) -> Iterator[tuple[MemoryBackend, list[Target]]]:
    """`count` healthy instances in a server that ends with the block. Raises CommandError."""
    with tempfile.TemporaryDirectory(prefix="roundhouse-bench-") as folder:
        backend = MemoryBackend(Path(folder) / "memory.sock", bind=settings.ENV.engine_bind)
        process = subprocess.Popen([sys.executable, "-m", "engines.backends.memory", str(backend.path)], cwd=settings.BASE_DIR)
        try:
            _wait(backend)
            yield backend, [_start(backend) for _ in range(count)]
        finally:
            servers.stop(process)


def _wait(backend: MemoryBackend) -> None:
    deadline = time.monotonic() + UP_S
    while True:
        try:
            backend.identity()
        except BackendUnavailable as error:
            if time.monotonic() > deadline:
                raise CommandError(f"the server of the engines does not start: {error}") from error
            time.sleep(0.05)
        else:
            return


def _start(backend: MemoryBackend) -> Target:
    ref = Ref(uuid4(), 1)
    while True:
        port = servers.free_port()
        backend.create(Spec(ref, "bench", "bench", port, {"ENGINE_KEY_HASH": KEY_HASH}))
        with suppress(PortTaken):  # somebody was faster
            backend.start(ref)
            return Target(ref.engine_id, 1, port, KEY_HASH)


def measure_good(rounds: int, count: int) -> list[Cost]:
    """The cost of a probe per round; `count` good engines are probed at once. Raises CommandError."""
    with instances(count) as (_, targets):
        return [_measure_round(targets) for _ in range(rounds)]


def _measure_round(targets: Sequence[Target]) -> Cost:
    results, cost = _probe(targets)
    if not all(result.ok for result in results):
        raise CommandError(f"a good engine was found unhealthy: {next(result for result in results if not result.ok).text}")
    return Cost(cost.cpu_s / len(targets), cost.wall_s / len(targets))


def measure_hostile() -> dict[str, tuple[Result, Cost]]:
    """The result and the cost of a probe for every hostile answer, by the answer's name."""
    found = {}
    with instances(1) as (backend, targets):
        for name, behaviour in ANSWERS.items():
            backend.behave(None, behaviour)
            (result,), cost = _probe(targets)
            found[name] = (result, cost)
    return found


def _probe(targets: Sequence[Target]) -> tuple[list[Result], Cost]:
    cpu, wall = time.process_time(), time.perf_counter()
    results = probes.probe_all(targets)
    return results, Cost(time.process_time() - cpu, time.perf_counter() - wall)


def report_good(costs: Sequence[Cost], count: int) -> str:
    """The medians of the rounds."""
    cpu, wall = statistics.median(cost.cpu_s for cost in costs), statistics.median(cost.wall_s for cost in costs)
    return f"{count} good engines probed at once: CPU ms per probe {cpu * 1000:.3f}, probes/s {1 / wall:.0f}"


def report_hostile(found: dict[str, tuple[Result, Cost]]) -> tuple[str, bool]:
    """A line per hostile answer, and whether the limit holds for all of them."""
    lines, holds = [f"{'hostile answer':44} {'result':16}   CPU ms  seconds"], True
    for name, (result, cost) in found.items():
        is_cheap = cost.cpu_s <= HOSTILE_CPU_S
        verdict = f"{'PASS' if is_cheap else 'FAIL'} (at most {HOSTILE_CPU_S * 1000:.0f} ms)"
        lines.append(f"{name:44} {result.text:16} {cost.cpu_s * 1000:8.1f} {cost.wall_s:8.2f}  {verdict}")
        holds &= is_cheap
    return "\n".join(lines), holds


# -- a deployment ----------------------------------------------------------------------------------------------------------


def measure_deployment(own: Own, *, good: int, hostile: int, seconds: float) -> Iterator[Finding]:
    """Load of `health` and the good engines' punctuality, `seconds` without and `seconds` with hostile engines.

    The hostile engines are healthy at first. Then each of them gives a new hostile answer after every interval.
    """
    backend = MemoryBackend(own.home / "run" / "memory.sock")
    own.spawn("memory", "-m", "engines.backends.memory", str(backend.path))
    _wait(backend)
    _provision(own, good, hostile)
    time.sleep(1.5 * settings.ENV.health_check_interval_s)  # until every engine was probed
    phases: list[tuple[str, dict[str, Behaviour] | None]] = [(f"{good + hostile} good engines", None)]
    if hostile:
        phases.append((f"{good} good and {hostile} hostile engines", ANSWERS))
    for told, answers in phases:
        with ThreadPoolExecutor(1) as pool:
            watched = pool.submit(own.run, "manage.py", "shell", "--verbosity=0", "-c", _program(seconds))
            mean, worst = _watch_processor(own, backend, seconds, answers)
            seen = json.loads(watched.result())
        if answers:
            yield Finding(f"{told}: share of a processor", f"{mean:.1%}", f"< {SHARE:.0%}", mean < SHARE)
        else:
            yield Finding(f"{told}: share of a processor", f"{mean:.1%}")
        yield Finding("  worst 10 s", f"{worst:.1%}")
        share = 1 - len(seen["late"]) / seen["engines"]
        yield Finding(f"  good engines that were always on time, of {seen['engines']}", f"{share:.1%}", "100 %", share == 1)
        yield Finding("  age of their oldest good result", f"{seen['oldest_s']:.1f} s")
        for engine_id, known in seen["late"].items():
            yield Finding(f"  late: {engine_id}", known)


def _provision(own: Own, good: int, hostile: int) -> None:
    keys = {slug: load.register(own, slug, {}) for slug in ("bench", "bench-hostile")}
    load.provision(own, keys["bench-hostile"], hostile)
    load.provision(own, keys["bench"], good)


def _program(seconds: float) -> str:
    return f"from bench import probes; probes.watch({seconds!r}, 'bench')"


def _watch_processor(
    own: Own, backend: MemoryBackend, seconds: float, answers: dict[str, Behaviour] | None
) -> tuple[float, float]:
    """The share of a processor that `health` uses, and the share in its worst 10 s; meanwhile the hostile engines answer."""
    hostile = _hostile_engines(own) if answers else []
    turns = itertools.cycle((answers or {}).values())
    used, step_s = [], min(10.0, seconds)
    next_answers = began = last = time.monotonic()
    cpu = _cpu_s(own)
    while last - began < seconds:
        if last >= next_answers:
            next_answers += settings.ENV.health_check_interval_s
            for engine_id in hostile:
                backend.behave([engine_id], next(turns))
        time.sleep(step_s)
        now, cpu_now = time.monotonic(), _cpu_s(own)
        used.append((cpu_now - cpu, now - last))
        last, cpu = now, cpu_now
    return sum(each for each, _ in used) / (last - began), max(each / lasted for each, lasted in used)


def _hostile_engines(own: Own) -> list[UUID]:
    program = "from bench import probes; probes.tell_engines('bench-hostile')"
    return [UUID(line) for line in own.run("manage.py", "shell", "--verbosity=0", "-c", program).split()]


def _cpu_s(own: Own) -> float:
    parent = psutil.Process(own.pid("health"))
    used = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    return sum(times.user + times.system for times in used)


# -- inside the deployment -------------------------------------------------------------------------------------------------


def tell_engines(slug: str) -> None:
    """Print the ids of the product's living engines."""
    from engines.models import Engine

    for engine_id in Engine.objects.living().filter(product__slug=slug).values_list("pk", flat=True):
        print(engine_id)


def watch(seconds: float, slug: str) -> None:
    """Look at the product's engines every second; print their number, and what is known of each engine that was ever late.

    An engine is late if its last good result is older than the longest interval, a tick and LATE_S together.
    """
    longest_s = settings.ENV.health_check_interval_s * 1.1 + TICK_S + LATE_S
    oldest_s, late = 0.0, {}
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT e.id::text, extract(epoch FROM now() - e.last_health_at)::float, e.status, e.health_failures,"
                " extract(epoch FROM now() - e.next_probe_at)::float"
                " FROM engines_engine e JOIN policy_product p ON p.id = e.product_id WHERE p.slug = %s AND destroyed_at IS NULL",
                (slug,),
            )
            found = cursor.fetchall()
        for engine_id, age_s, status, failures, due_s in found:
            oldest_s = max(oldest_s, age_s)
            if age_s > longest_s:
                late[engine_id] = f"{status}, {failures} failed probes, last good result {age_s:.1f} s ago, due {due_s:.1f} s ago"
        time.sleep(1)
    print(json.dumps({"engines": len(found), "late": late, "oldest_s": oldest_s}))
