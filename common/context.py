"""The context of the request at hand: its id, and the name of the credential that it came with.

Audit rows, log lines, error answers and messages to workers take both from here. A thread handles one request at a time, and a
context variable has a value of its own in each thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request's `X-Request-ID`; in a worker, the id of the request that the work is done for."""

credential: ContextVar[str | None] = ContextVar("credential", default=None)
"""The name of the credential that the request came with, where it has a name."""


@contextmanager
def of_request(identifier: str | None) -> Iterator[None]:
    """Work for the request with this id inside the block, with no credential yet; afterwards the context is as before."""
    id_token, credential_token = request_id.set(identifier), credential.set(None)
    try:
        yield
    finally:
        credential.reset(credential_token)
        request_id.reset(id_token)
