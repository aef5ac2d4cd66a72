"""Probes: a probe is a single request to an engine, and its result says whether the engine is healthy.

An engine is healthy when it answers `GET /health` with 2xx and a JSON body whose `status` is "ok".
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID

import structlog

from common.settings import settings
from engines import addresses
from engines.health import exchange
from engines.models import Engine

log = structlog.get_logger(__name__)
CHUNK = 500  # engines claimed and probed together, at most


@dataclass(frozen=True)
class Target:
    """An engine to probe. The result counts only while the engine has the given `seq`."""

    engine_id: UUID
    seq: int
    port: int


@dataclass(frozen=True)
class Result:
    """The result of a probe.

    `text` is "ok", "timeout", "connect_error", "status_<code>", "not_json", "not_ok" or "error". An answer that is not HTTP is
    "not_http". An answer beyond the bounds of `exchange` is "too_large" or "too_many_parts".
    """

    ok: bool
    text: str


Found = list[tuple[Target, Result]]


def probe_all(targets: Sequence[Target]) -> list[Result]:
    """Probe all targets concurrently; returns a result per target, in order."""
    found: Found = []
    probe_apart(targets, None, found.extend)
    results = dict(found)
    return [results[target] for target in targets]


def probe_apart(targets: Sequence[Target], patience_s: float | None, tell: Callable[[Found], None]) -> Found:
    """Probe all targets concurrently. Calls `tell` once, with the results of the first `patience_s`; returns all later results.

    None: `tell` gets all results, and none is later.
    """
    return asyncio.run(_probe_apart(targets, patience_s, tell))


class Prober:
    """Probes an engine repeatedly, with a single event loop: creating the loop is much of the cost of a probe.

    A context manager, for use by a single thread.
    """

    def __init__(self, engine: Engine) -> None:
        assert engine.port is not None  # every living engine has a port
        self._target = Target(engine.pk, engine.seq, engine.port)

    def __enter__(self) -> "Prober":
        self._runner = asyncio.Runner()
        return self

    def probe(self) -> Result:
        """Send a single probe to the engine."""
        return self._runner.run(_probe(self._target))

    def __exit__(self, *exc: object) -> None:
        self._runner.close()


async def _probe_apart(targets: Sequence[Target], patience_s: float | None, tell: Callable[[Found], None]) -> Found:
    """`probe_apart`, with at most CHUNK probes at a time.

    Every probe gets a thread for its name lookup, at least four threads in all. A lookup of an unknown name may take seconds, and
    must not hold up the probes of other engines.
    """
    at_once = min(CHUNK, len(targets))
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max(4, at_once)))
    places = asyncio.Semaphore(at_once)

    async def probe(target: Target) -> tuple[Target, Result]:
        async with places:
            return target, await _probe(target)

    prompt, late = await asyncio.wait([asyncio.create_task(probe(target)) for target in targets], timeout=patience_s)
    tell([task.result() for task in prompt])
    return list(await asyncio.gather(*late))


async def _probe(target: Target) -> Result:
    """Send the probe, without following redirects: an engine runs untrusted code."""
    address = urlsplit(addresses.probe_url(target.engine_id, target.port))
    try:
        async with asyncio.timeout(settings.ENV.health_check_timeout_s):
            answer = await exchange.ask(address.hostname or "", address.port or 80, address.netloc)
    except TimeoutError:
        return Result(False, "timeout")
    except exchange.Unreadable as cause:
        return Result(False, str(cause))
    except OSError:
        return Result(False, "connect_error")
    except Exception:  # the answer of an engine must not end the probes of all engines
        log.exception("probe_error", engine_id=str(target.engine_id))
        return Result(False, "error")
    return _judge(answer)


def _judge(answer: exchange.Answer) -> Result:
    if not 200 <= answer.status < 300:
        return Result(False, f"status_{answer.status}")
    try:
        parsed = json.loads(answer.body)
    except (ValueError, RecursionError):
        return Result(False, "not_json")
    ok = isinstance(parsed, dict) and parsed.get("status") == "ok"
    return Result(ok, "ok" if ok else "not_ok")
