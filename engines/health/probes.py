"""Probes: one request to an engine, and what it says of the engine's health.

Healthy is `GET /health` answering 2xx with a JSON body whose `status` is "ok"."""

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
