"""The context of the call at hand: the ids that name the call, and who called.

A call is a request, a run of a task without a request behind it, or a management command. Audit rows, operations, log lines and
error answers read the call here. A thread handles a single call at a time, and a context variable has a separate value in every
thread.
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import NamedTuple
from uuid import UUID, uuid4

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""The form of a request's id."""

CALL_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The form of a call's id: a UUID in lower case."""


class Call(NamedTuple):
    """A call; a field is None where it is unknown, or does not apply. A tuple, because the hot path makes two for each admit."""

    call_id: UUID  # always made by us, and never taken from a caller: no two calls have the same
    request_id: str | None = None  # the request's `X-Request-ID`, which a caller may choose, and use twice
    key_id: UUID | None = None  # the platform key or the admin key; None for ORCH_ADMIN_KEY, which has no row, and without a key
    key_name: str | None = None  # the name of the admin key
    client_ip: str | None = None  # an address that PostgreSQL's type `inet` accepts
    user_agent: str | None = None  # at most 200 printable characters
    on_behalf_of: str | None = None  # the request's `X-On-Behalf-Of`: whoever the caller acts for, in the caller's own words


_call: ContextVar[Call | None] = ContextVar("call", default=None)


def current() -> Call:
    """The call at hand. Without a call, a new call begins, and lasts for the thread: a management command is a single call."""
    call = _call.get()
    if call is None:
        call = Call(uuid4())
        _call.set(call)
    return call


def known() -> Call | None:
    """The call at hand; None without a call."""
    return _call.get()


def enter(call: Call | None) -> None:
    """Set the call for all that follows in the thread; None for no call."""
    _call.set(call)


@contextmanager
def of_call(call: Call) -> Iterator[None]:
    """Set the call during the block; restore the call before it afterwards."""
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)


def of_request(request_id: str | None) -> AbstractContextManager[None]:
    """Set a new call with the request id during the block; nothing is known of its caller."""
    return of_call(Call(uuid4(), request_id))


def identify(key_id: UUID | None, key_name: str | None = None) -> None:
    """Note the key of the call at hand, once the key is found to be valid."""
    _call.set(current()._replace(key_id=key_id, key_name=key_name))
