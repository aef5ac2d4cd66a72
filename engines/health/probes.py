"""Probes: a probe is a single request to an engine, and its result says whether the engine is healthy.

An engine is healthy when it answers `GET /health` with 2xx and a JSON body whose `status` is "ok".
"""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

import aiohttp
import structlog

from common.settings import settings
from engines import addresses
from engines.models import Engine

log = structlog.get_logger(__name__)
CHUNK = 500  # engines claimed and probed together, at most
BODY_CAP = 64 * 1024  # bytes of a health body that are read


@dataclass(frozen=True)
class Target:
    """An engine to probe. The result counts only while the engine has the given `seq`."""

    engine_id: UUID
    seq: int
    port: int


@dataclass(frozen=True)
class Result:
    """The result of a probe.

    `text` is "ok", "timeout", "connect_error", "status_<code>", "too_large", "not_json", "not_ok" or "error".
    """

    ok: bool
    text: str


def probe_all(targets: Sequence[Target]) -> list[Result]:
    """Probe all targets concurrently; returns a result per target, in order."""
    return asyncio.run(_probe_all(targets))


class Prober:
    """Probes an engine repeatedly, with a single event loop and session: creating both is most of the cost of a probe.

    A context manager, for use by a single thread.
    """

    def __init__(self, engine: Engine) -> None:
        assert engine.port is not None  # every living engine has a port
        self._target = Target(engine.pk, engine.seq, engine.port)

    def __enter__(self) -> "Prober":
        self._runner = asyncio.Runner()
        self._session = self._runner.run(_open_session(1))
        return self

    def probe(self) -> Result:
        """Send a single probe to the engine."""
        return self._runner.run(_probe(self._session, self._target))

    def __exit__(self, *exc: object) -> None:
        self._runner.run(self._session.close())
        self._runner.close()


async def _probe_all(targets: Sequence[Target]) -> list[Result]:
    async with await _open_session(len(targets)) as session:
        return list(await asyncio.gather(*(_probe(session, target) for target in targets)))


async def _open_session(at_once: int) -> aiohttp.ClientSession:
    """A session for `at_once` probes at a time.

    Every probe gets a thread for its name lookup, at least four threads in all. A lookup of an unknown name may take seconds, and
    must not hold up the probes of other engines.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max(4, at_once)))
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CHUNK, force_close=True),
        timeout=aiohttp.ClientTimeout(total=settings.ENV.health_check_timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),  # a jar would mix the cookies of all engines of a host
        auto_decompress=False,
    )


async def _probe(session: aiohttp.ClientSession, target: Target) -> Result:
    """Send the probe, without following redirects or reading a large body: an engine runs untrusted code."""
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
    except Exception:  # the answer of an engine must not end the probes of all engines
        log.exception("probe_error", engine_id=str(target.engine_id))
        return Result(False, "error")


async def _receive(content: aiohttp.StreamReader) -> bytes:
    """The body, or a little more than BODY_CAP bytes of it, in several reads: a read returns only the bytes received so far."""
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
