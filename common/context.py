"""The context of the current request: its id, and the name of its credential.

Audit rows, log lines, error answers and messages to workers read both values here. A thread handles a single request at a time,
and a context variable has a separate value in every thread.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""The form of a request's id."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request's `X-Request-ID`; in a worker, the id of the request behind the work."""

credential: ContextVar[str | None] = ContextVar("credential", default=None)
"""The name of the request's credential; None if the credential has no name."""


@contextmanager
def of_request(identifier: str | None) -> Iterator[None]:
    """Set the context to the request `identifier`, without a credential, during the block; restore the context afterwards."""
    id_token, credential_token = request_id.set(identifier), credential.set(None)
    try:
        yield
    finally:
        credential.reset(credential_token)
        request_id.reset(id_token)
