"""Probes: which engines are due, whether they are healthy, and what follows from it.

Healthy is `GET /health` answering 2xx with a JSON body whose `status` is "ok". All that a judgement depends on is in the engine's
row, so that it survives any restart and is shared by any number of processes.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

import aiohttp
import structlog
from django.db import connection, transaction
from django.db.models.functions import Now

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM
from common.settings import settings
from engines import addresses, automatic, lifecycle, moves, reconcile
from engines.models import Engine

log = structlog.get_logger(__name__)

CHUNK = 500  # engines claimed, and probed at once
BODY_CAP = 64 * 1024  # bytes of a health body that are read


@dataclass(frozen=True)
class Target:
    """An engine to probe, and the `seq` that the result will count for."""

    engine_id: UUID
    seq: int
    port: int


@dataclass(frozen=True)
class Result:
    """What a probe found.

    `text` is "ok", "timeout", "connect_error", "status_<code>", "too_large", "not_json", "not_ok" or "error".
    """

    ok: bool
    text: str


# -- probing -----------------------------------------------------------------------------------------------------------


def probe_all(targets: Sequence[Target]) -> list[Result]:
    """Probe every target concurrently; one result each, in order."""
    return asyncio.run(_probe_all(targets))


class Prober:
    """Probes one engine again and again, on one event loop and in one session: to make those is most of what a probe costs.

    A context manager, for one thread.
    """

    def __init__(self, engine: Engine) -> None:
        assert engine.port is not None  # every living engine has one
        self._target = Target(engine.pk, engine.seq, engine.port)

    def __enter__(self) -> "Prober":
        self._runner = asyncio.Runner()
        self._session = self._runner.run(_open_session(1))
        return self

    def probe(self) -> Result:
        """Ask the engine once."""
        return self._runner.run(_probe(self._session, self._target))

    def __exit__(self, *exc: object) -> None:
        self._runner.run(self._session.close())
        self._runner.close()


async def _probe_all(targets: Sequence[Target]) -> list[Result]:
    async with await _open_session(len(targets)) as session:
        return list(await asyncio.gather(*(_probe(session, target) for target in targets)))


async def _open_session(at_once: int) -> aiohttp.ClientSession:
    """A session for so many probes at a time.

    Threads look up the names of engines, and may need seconds to find out that nobody has one: nobody else waits for those.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max(4, at_once)))
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CHUNK, force_close=True),
        timeout=aiohttp.ClientTimeout(total=settings.ENV.health_check_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),  # all engines are one host to a jar
        auto_decompress=False,
    )


async def _probe(session: aiohttp.ClientSession, target: Target) -> Result:
    """Neither redirects nor a large body are followed: an engine runs code that we do not trust."""
    try:
        address = addresses.probe_url(target.engine_id, target.port)
        async with session.get(f"{address}/health", allow_redirects=False) as response:
            if not 200 <= response.status < 300:
                return Result(False, f"status_{response.status}")
            return _read(await _receive(response.content))
    except TimeoutError:
        return Result(False, "timeout")
    except (aiohttp.ClientError, OSError):
        return Result(False, "connect_error")
    except Exception:  # one engine's answer must not end the probing of all others
        log.exception("probe_error", engine_id=str(target.engine_id))
        return Result(False, "error")


async def _receive(content: aiohttp.StreamReader) -> bytes:
    """The body to its end, or a little more than BODY_CAP of it: a single read returns whatever has come so far."""
    body = b""
    while len(body) <= BODY_CAP and (part := await content.read(BODY_CAP)):
        body += part
    return body


def _read(body: bytes) -> Result:
    if len(body) > BODY_CAP:
        return Result(False, "too_large")
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return Result(False, "not_json")
    ok = isinstance(parsed, dict) and parsed.get("status") == "ok"
    return Result(ok, "ok" if ok else "not_ok")


# -- the loop ----------------------------------------------------------------------------------------------------------


def probe_due() -> int:
    """Claim, probe and judge every engine that is due, a chunk at a time; returns how many. Any number may run at once."""
    total = 0
    while targets := claim():
        connection.close()  # not held while we wait for engines
        judge(targets, probe_all(targets))
        total += len(targets)
        if len(targets) < CHUNK:
            break
    return total


def claim() -> list[Target]:
    """Running engines that are due and have no open operation; each is claimed once, by moving its next probe.

    Materialized, so that no plan can evaluate (and lock) the chunk once per row of the registry.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH due AS MATERIALIZED (
                SELECT id FROM engines_engine e WHERE status = 'running' AND next_probe_at <= now() AND NOT EXISTS (
                    SELECT 1 FROM engines_operation o WHERE o.engine_id = e.id AND o.state IN ('pending', 'running'))
                ORDER BY next_probe_at LIMIT %(chunk)s FOR NO KEY UPDATE SKIP LOCKED)
            UPDATE engines_engine e SET next_probe_at = now() + make_interval(secs => %(interval)s * (0.9 + 0.2 * random()))
            FROM due WHERE e.id = due.id
            RETURNING e.id, e.seq, e.port
            """,
            {"interval": settings.ENV.health_check_interval_s, "chunk": CHUNK},
        )
        return [Target(*row) for row in cursor.fetchall()]


def judge(targets: Sequence[Target], results: Sequence[Result]) -> None:
    """Count the results, write the sampled rows, and fail the engines that failed too often.

    A result counts only while the engine is as it was when it was probed: same `seq`, still running, no open operation; and
    a bad one only while its host is settled.
    """
    pairs = list(zip(targets, results, strict=True))
    if not all(result.ok for result in results) and not reconcile.host_is_settled():
        pairs = [(target, result) for target, result in pairs if result.ok]
    found = {target.engine_id: (target, result) for target, result in pairs}
    for engine_id, failures, attempts in _count(found):
        target, result = found[engine_id]
        if not result.ok and failures >= settings.ENV.health_max_failures:
            delay = next_restart_s(attempts)
            if lifecycle.mark_failed(engine_id, target.seq, by=SYSTEM, result=result.text, failures=failures, retry_in_s=delay):
                log.warning("engine_failed", engine_id=str(engine_id), result=result.text)


@transaction.atomic
def _count(found: dict[UUID, tuple[Target, Result]]) -> list[tuple[UUID, int, int]]:
    """Apply results to the counters and write sampled rows; returns (engine, failures, restart attempts) of each that counted."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE engines_engine e SET
                health_row_at = CASE WHEN e.last_health_ok IS DISTINCT FROM r.ok OR e.health_row_at IS NULL
                    OR e.health_row_at < now() - make_interval(secs => %(row_interval)s) THEN now() ELSE e.health_row_at END,
                last_health_ok = r.ok,
                last_health_at = CASE WHEN r.ok THEN now() ELSE e.last_health_at END,
                health_failures = CASE WHEN r.ok THEN 0 ELSE e.health_failures + 1 END,
                healthy_since = CASE WHEN r.ok THEN coalesce(e.healthy_since, now()) END,
                restart_attempts = CASE WHEN r.ok AND e.healthy_since <= now() - make_interval(secs => %(reset)s)
                    THEN 0 ELSE e.restart_attempts END
            FROM unnest(%(ids)s::uuid[], %(seqs)s::bigint[], %(oks)s::bool[]) AS r(id, seq, ok)
            WHERE e.id = r.id AND e.seq = r.seq AND e.status = 'running' AND NOT EXISTS (
                SELECT 1 FROM engines_operation o WHERE o.engine_id = e.id AND o.state IN ('pending', 'running'))
            RETURNING e.id, e.health_failures, e.restart_attempts, e.health_row_at = now()
            """,
            {
                "row_interval": settings.ENV.health_row_interval_s,
                "reset": settings.ENV.restart_reset_s,
                "ids": list(found),
                "seqs": [target.seq for target, _ in found.values()],
                "oks": [result.ok for _, result in found.values()],
            },
        )
        counted = cursor.fetchall()
    sampled = {row[0]: row[1] for row in counted if row[3]}
    for engine in Engine.objects.filter(pk__in=sampled).select_related("product"):
        result = found[engine.pk][1]
        metadata = {"healthy": result.ok, "result": result.text, "failures": sampled[engine.pk]}
        trail.record(Action.HEALTH_CHECK, moves.subject(engine), by=SYSTEM, metadata=metadata)
    return [(row[0], row[1], row[2]) for row in counted]


# -- automatic restarts ------------------------------------------------------------------------------------------------


def next_restart_s(attempts: int) -> float | None:
    """Seconds until the next automatic restart after `attempts` of them, or None when that were all.

    base × 2^attempts, capped; a random fifth less, so that engines that failed together do not come back together.
    """
    if attempts >= settings.ENV.restart_max_attempts:
        return None
    delay = min(settings.ENV.restart_backoff_base_s * 2.0**attempts, settings.ENV.restart_backoff_max_s)
    return delay * random.uniform(0.8, 1.0)  # noqa: S311 (jitter)


def restart_due() -> int:
    """Open the restart of every failed engine whose time has come; returns how many. None while its host is not settled.

    An attempt under a runtime that is away would say nothing of the engine, and yet count.
    """
    due = list(Engine.objects.filter(status="failed", next_restart_at__lte=Now()).values_list("pk", flat=True)[:CHUNK])
    if not due or not reconcile.host_is_settled():
        return 0
    return sum(automatic.auto_restart(engine_id, by=SYSTEM) is not None for engine_id in due)
