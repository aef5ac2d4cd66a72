"""Brakes on guessing passwords and codes: growing pauses after failures, by user name and by address, for all processes.

The first failures cost no pause. Then each further failure doubles the pause, up to a longest one. Failures are counted in
Valkey, and while Valkey is away, in this process. A name's count ends when its user logs in. An address's count ends only with
time: otherwise a guesser with an account of their own would log in every now and then.

{log-in}/failures/<digest>    the failures of a name or an address; expires some time after the last failure
{log-in}/pause/<digest>       there while the name or the address is paused
"""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import redis
from django.http import HttpResponse
from django.utils.crypto import salted_hmac

from common import context, ip_addresses, valkey

_FAILURES, _PAUSE = "{log-in}/failures/", "{log-in}/pause/"
_ENTRIES = 10_000  # names and addresses whose failures a process counts by itself


class Paused(Exception):
    """Too many failures: nobody looks at a password or a code before `retry_after_s` whole seconds have passed."""

    def __init__(self, retry_after_s: int) -> None:
        unit = "second" if retry_after_s == 1 else "seconds"
        super().__init__(f"Too many failed log-ins. Try again in {retry_after_s} {unit}.")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Brake:
    """`free` failures cost no pause; the next costs a second, and each further failure twice as many, up to `longest_s`.

    The count is forgotten `kept_s` seconds after the last failure.
    """

    kind: str
    free: int
    longest_s: int
    kept_s: int

    def pause_s(self, failures: int) -> int:
        """The pause after so many failures, in seconds."""
        return 0 if failures <= self.free else int(min(self.longest_s, 2 ** min(failures - self.free - 1, 30)))

    def digest(self, value: str) -> str:
        """The name or address in keys of Valkey, where nobody can read it."""
        return salted_hmac(f"{__name__} {self.kind}", value, algorithm="sha256").hexdigest()[:32]


OF_NAME = Brake("name", free=3, longest_s=900, kept_s=24 * 3600)
OF_ADDRESS = Brake("address", free=10, longest_s=300, kept_s=3600)  # of many people, where they share an address


def check(username: str) -> None:
    """Raise Paused while the name, or the address of the call at hand, is paused."""
    left_ms = max(_left_ms(brake, digest) for brake, digest in _both(username))
    if left_ms > 0:
        raise Paused(math.ceil(left_ms / 1000))


def failed(username: str) -> None:
    """Count a failure of the name and of the address of the call at hand, and begin their pauses."""
    for brake, digest in _both(username):
        try:
            valkey.ask(partial(_count, brake=brake, digest=digest), _keys(digest), numbers=[_FAILURES + digest])
        except valkey.Away:
            _count_here(brake, digest)


def passed(username: str) -> None:
    """Forget the failures of the name, because its user has proved who they are."""
    forget(OF_NAME.digest(username))


def forget(digest: str) -> None:
    """Forget the failures of a name or an address, and end its pause."""
    with _lock:
        _here.pop(digest, None)
    try:
        valkey.ask(lambda client: client.delete(*_keys(digest)))
    except valkey.Away:
        return  # the count ends by itself


def _both(username: str) -> Iterator[tuple[Brake, str]]:
    yield OF_NAME, OF_NAME.digest(username)
    address = context.current().client_ip
    if address:
        yield OF_ADDRESS, OF_ADDRESS.digest(ip_addresses.owner(address))


def _keys(digest: str) -> dict[str, str]:
    return {_FAILURES + digest: "string", _PAUSE + digest: "string"}


def _left_ms(brake: Brake, digest: str) -> float:
    """The rest of a pause; never more than the longest pause, whatever Valkey says."""
    try:
        left_ms = float(valkey.ask(lambda client: client.pttl(_PAUSE + digest)))
    except valkey.Away:
        left_ms = 0.0
    return min(max(left_ms, _left_here_ms(digest)), brake.longest_s * 1000)


def _count(client: redis.Redis, brake: Brake, digest: str) -> None:
    with client.pipeline() as pipeline:
        pipeline.incr(_FAILURES + digest)
        pipeline.expire(_FAILURES + digest, brake.kept_s)
        failures = int(pipeline.execute()[0])
    if pause_s := brake.pause_s(failures):
        client.set(_PAUSE + digest, "1", ex=pause_s)


# -- while Valkey is away ----------------------------------------------------------------------------------------------

_here: dict[str, tuple[int, float]] = {}  # by digest: the failures, and the end of the pause (monotonic clock)
_lock = threading.Lock()


def _count_here(brake: Brake, digest: str) -> None:
    with _lock:
        if len(_here) >= _ENTRIES:
            _here.clear()
        failures = _here.get(digest, (0, 0.0))[0] + 1
        _here[digest] = failures, time.monotonic() + brake.pause_s(failures)


def _left_here_ms(digest: str) -> float:
    with _lock:
        return (_here.get(digest, (0, 0.0))[1] - time.monotonic()) * 1000


def answer(response: HttpResponse, paused: Paused, status: int = 429) -> HttpResponse:
    """The response as the answer to a paused request, with `Retry-After`."""
    response.status_code = status
    response["Retry-After"] = str(paused.retry_after_s)
    return response
