"""The health loop: claims engines that are due for a probe, and judges the results of the probes.

A judgement depends only on the engine's row. The judgement thus survives any restart, and any number of processes share it.
"""

import contextvars
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime

import structlog
from django.db import connection
from django.db.models.functions import Now

from audit.actors import SYSTEM
from common import outages, times
from common.outages import POSTGRESQL
from common.settings import settings
from engines import lifecycle, reconcile
from engines.health.probes import CHUNK, Found, Result, Target, probe_in_steps
from engines.models import IS_OPEN, Engine, Status

STEP_S = 0.25  # after which the results of a chunk are judged: nearly all engines answer within milliseconds
PATIENCE_S = 1.0  # for all results of a chunk
PLACES = 6  # chunks per process that may have late results; each holds up to CHUNK connections
_places = threading.BoundedSemaphore(PLACES)
log = structlog.get_logger(__name__)


def probe_due() -> int:
    """Claim and probe every due engine, a chunk at a time; returns how many. Any number of calls may run at once.

    Results are judged every STEP_S. All results that come within PATIENCE_S are judged on return, or STEP_S later.
    """
    total, began = 0, times.database_now()  # an engine that gets due meanwhile is left to the next call
    while targets := claim(began) or _claim_skipped(began):
        connection.close()  # not held while engines are probed
        _probe(targets)
        total += len(targets)
    return total


def _probe(targets: Sequence[Target]) -> None:
    """Probe the targets and judge the results, in a thread. Wait for PATIENCE_S, or for all results if there is no place.

    Otherwise a few silent engines would hold up all periodic jobs behind their chunk.
    """
    has_place = _places.acquire(blocking=False)
    end: Future[None] = Future()
    # The rows that the thread writes name the call at hand.
    arguments = (contextvars.copy_context(), targets, end, has_place)
    threading.Thread(target=_probe_chunk, args=arguments, daemon=True).start()
    with suppress(TimeoutError):
        end.result(PATIENCE_S if has_place else None)


def _probe_chunk(context: contextvars.Context, targets: Sequence[Target], end: "Future[None]", has_place: bool) -> None:
    try:
        context.run(probe_in_steps, targets, STEP_S, _judge)
        end.set_result(None)
    except Exception as error:  # nobody may wait for `end` any more
        if outages.is_away(error):
            POSTGRESQL.failed(error)
        else:
            log.exception("probe_error", engines=len(targets))
        end.set_exception(error)
    finally:
        if has_place:
            _places.release()


def _judge(found: Found) -> None:
    try:
        if found:
            judge(*zip(*found, strict=True))
    finally:
        connection.close()  # the thread's own


# An engine with an open operation is left to the operation.
_DUE = f"""
    SELECT id FROM engines_engine e WHERE status = 'running' AND next_probe_at <= %(by)s
    AND NOT EXISTS (SELECT 1 FROM engines_operation o WHERE o.engine_id = e.id AND {IS_OPEN})
"""
"""SQL: the running engines that were due by the time `by`."""


def _claim_skipped(by: datetime) -> list[Target]:
    """Claim the engines that `claim` skipped, because their rows were locked for a moment: the sizes of volumes were stored.

    Without a second attempt, a skipped engine would wait for the next call of `probe_due`.
    """
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT EXISTS ({_DUE})", {"by": by})
        if cursor.fetchone() == (False,):
            return []
    time.sleep(STEP_S)
    return claim(by)


def claim(by: datetime) -> list[Target]:
    """Claim up to CHUNK running engines that were due by the time `by`, by moving their next probe into the future.

    An engine with an open operation is not claimed.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            -- MATERIALIZED: otherwise a plan could evaluate (and lock) the chunk once per engine of the registry.
            WITH due AS MATERIALIZED (
                {_DUE}
                -- The longest overdue first. The rows are locked, and rows locked by another process are skipped: two processes
                -- never probe the same engine. NO KEY: rows that refer to a locked engine can still be inserted.
                ORDER BY next_probe_at LIMIT %(chunk)s FOR NO KEY UPDATE SKIP LOCKED)
            -- Up to a tenth more or less, at random: engines that started together are not probed together for ever.
            UPDATE engines_engine e SET next_probe_at = now() + make_interval(secs => %(interval)s * (0.9 + 0.2 * random()))
            FROM due WHERE e.id = due.id
            RETURNING e.id, e.seq, e.port, e.key_hash, e.proves
            """,
            {"by": by, "interval": settings.ENV.health_check_interval_s, "chunk": CHUNK},
        )
        return [Target(*row) for row in cursor.fetchall()]


def judge(targets: Sequence[Target], results: Sequence[Result]) -> None:
    """Count the results, write the sampled audit rows, and mark engines as failed after too many failed probes.

    A result counts only if the engine has not changed since the probe: unmoved `seq`, still running, no open operation. A failed
    probe counts only while the host is settled. A good answer without a proof is noted, and waits for the list of `reconcile`.
    """
    pairs = list(zip(targets, results, strict=True))
    if not all(result.ok for result in results) and not reconcile.host_is_settled():
        pairs = [(target, result) for target, result in pairs if result.ok]
    lifecycle.note([(target.engine_id, target.seq) for target, result in pairs if result.ok and not result.proven])
    counted = [(target, result) for target, result in pairs if result.proven or not result.ok]
    findings = [lifecycle.Finding(target.engine_id, target.seq, result.ok, result.text) for target, result in counted]
    failures = lifecycle.count(findings)
    for each in findings:
        if not each.ok and failures.get(each.engine_id, 0) >= settings.ENV.health_max_failures:
            why = {"cause": "probes", "result": each.text, "failures": failures[each.engine_id]}
            if lifecycle.mark_failed(each.engine_id, each.seq, by=SYSTEM, why=why, may_run=True):
                log.warning("engine_failed", engine_id=str(each.engine_id), **why)


def restart_due() -> int:
    """Open up to CHUNK due restarts of failed engines; returns how many. Opens no restart while the host is not settled.

    While the runtime is away, an attempt would show nothing about the engine, and yet count as a restart.
    """
    due = list(Engine.objects.filter(status=Status.FAILED, next_restart_at__lte=Now()).values_list("pk", flat=True)[:CHUNK])
    if not due or not reconcile.host_is_settled():
        return 0
    return sum(lifecycle.auto_restart(engine_id, by=SYSTEM) is not None for engine_id in due)
