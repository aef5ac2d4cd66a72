"""Probes: a probe is a single request to an engine, and its result says whether the engine is healthy.

An engine is healthy when it answers `GET /health` with 2xx and a JSON body whose `status` is "ok". A good answer counts only as
the engine's own: the answer has a proof (see `engines.proof`), or the runtime shows that nobody else can have answered.
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
from engines import addresses, proof
from engines.health import exchange
from engines.models import Engine

log = structlog.get_logger(__name__)
CHUNK = 500  # engines claimed and probed together, at most
_PROOF = proof.PROOF.lower().encode()


@dataclass(frozen=True)
class Target:
    """An engine to probe. The result counts only while the engine has the given `seq`.

    `key_hash` is the key of the engine's proof. With `must_prove`, a good answer without a proof is a failure: the same
    incarnation has proved an earlier answer, so the answer comes from somebody else.
    """

    engine_id: UUID
    seq: int
    port: int
    key_hash: str
    must_prove: bool = False


@dataclass(frozen=True)
class Result:
    """The result of a probe.

    `text` is "ok", "timeout", "connect_error", "status_<code>", "not_json", "not_ok" or "error". An answer that is not HTTP is
    "not_http". An answer beyond the bounds of `exchange` is "too_large" or "too_many_parts". A good answer with a wrong proof is
    "wrong_proof", a good answer without the proof that the engine owes is "no_proof". `proven`: the answer has the right proof.
    """

    ok: bool
    text: str
    proven: bool = False


Found = list[tuple[Target, Result]]


def probe_all(targets: Sequence[Target]) -> list[Result]:
    """Probe all targets concurrently; returns a result per target, in order."""
    found: Found = []
    probe_in_steps(targets, None, found.extend)
    results = dict(found)
    return [results[target] for target in targets]


def probe_in_steps(targets: Sequence[Target], step_s: float | None, tell: Callable[[Found], None]) -> None:
    """Probe all targets concurrently. Calls `tell` every `step_s` with the results of the step, until every target has a result.

    The results of a step may be none. `tell` runs in another thread, and the probes go on meanwhile. None: a single step.
    """
    asyncio.run(_probe_in_steps(targets, step_s, tell))


class Prober:
    """Probes an engine repeatedly, with a single event loop: creating the loop is much of the cost of a probe.

    A context manager, for use by a single thread.
    """

    def __init__(self, engine: Engine, key_hash: str, *, must_prove: bool = False) -> None:
        assert engine.port is not None  # every living engine has a port
        self._target = Target(engine.pk, engine.seq, engine.port, key_hash, must_prove)

    def __enter__(self) -> "Prober":
        self._runner = asyncio.Runner()
        return self

    def probe(self) -> Result:
        """Send a single probe to the engine."""
        return self._runner.run(_probe(self._target))

    def __exit__(self, *exc: object) -> None:
        self._runner.close()


async def _probe_in_steps(targets: Sequence[Target], step_s: float | None, tell: Callable[[Found], None]) -> None:
    """`probe_in_steps`, with at most CHUNK probes at a time.

    Every probe gets a thread for its name lookup, and `tell` gets a further thread. A lookup of an unknown name may take seconds,
    and must hold up neither the probes nor the results of other engines.
    """
    at_once = min(CHUNK, len(targets))
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(at_once + 1))
    places = asyncio.Semaphore(at_once)

    async def probe(target: Target) -> tuple[Target, Result]:
        async with places:
            return target, await _probe(target)

    pending = {asyncio.create_task(probe(target)) for target in targets}
    while pending:
        done, pending = await asyncio.wait(pending, timeout=step_s)
        await asyncio.to_thread(tell, [task.result() for task in done])


async def _probe(target: Target) -> Result:
    """Send the probe, without following redirects: an engine runs untrusted code."""
    address = urlsplit(addresses.probe_url(target.engine_id, target.port))
    nonce = proof.make_nonce()
    try:
        async with asyncio.timeout(settings.ENV.health_check_timeout_s):
            answer = await exchange.ask(address.hostname or "", address.port or 80, address.netloc, (proof.NONCE, nonce))
    except TimeoutError:
        return Result(False, "timeout")
    except exchange.Unreadable as cause:
        return Result(False, str(cause))
    except OSError:
        return Result(False, "connect_error")
    except Exception:  # the answer of an engine must not end the probes of all engines
        log.exception("probe_error", engine_id=str(target.engine_id))
        return Result(False, "error")
    result = _judge(answer)
    return _check_proof(target, nonce, answer.headers) if result.ok else result


def _judge(answer: exchange.Answer) -> Result:
    if not 200 <= answer.status < 300:
        return Result(False, f"status_{answer.status}")
    try:
        parsed = json.loads(answer.body)
    except (ValueError, RecursionError):
        return Result(False, "not_json")
    ok = isinstance(parsed, dict) and parsed.get("status") == "ok"
    return Result(ok, "ok" if ok else "not_ok")


def _check_proof(target: Target, nonce: str, headers: exchange.Headers) -> Result:
    """The result of a probe with a good answer."""
    shown = [value for name, value in headers if name == _PROOF]
    if not shown:
        return Result(False, "no_proof") if target.must_prove else Result(True, "ok")
    is_proven = all(proof.is_shown(each, target.key_hash, nonce) for each in shown)
    return Result(True, "ok", proven=True) if is_proven else Result(False, "wrong_proof")
