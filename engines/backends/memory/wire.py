"""The connection between the memory backend and its server: a pickled question, then a pickled answer.

Both sides read until the end of the stream. Both sides trust the pickles, because only our own user may enter the folder
of the socket.
"""

import asyncio
import os
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BACKLOG = 4_096  # a full backlog of a Unix socket refuses callers at once, without a wait: leave space for a burst of calls
PART = 65_536  # bytes


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for the socket `path`, short enough for the 107 bytes of a socket's address, at any depth of the folder."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(path: Path, question: Any, timeout_s: float) -> Any:
    """Send `question` to the server at `path`; returns the answer. Raises OSError, EOFError if the server ends in the middle."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        with short_path(path) as name:
            connection.connect(name)
        connection.sendall(pickle.dumps(question))
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(PART), b""))
    if not answer:
        raise EOFError("the server ended before it answered")
    return pickle.loads(answer)  # noqa: S301 (see above)


async def read(stream: asyncio.StreamReader) -> Any:
    """The question on a connection; None if the client closed the connection at once, to check only that the server listens."""
    question = await stream.read(-1)
    return pickle.loads(question) if question else None  # noqa: S301 (see above)


async def answer(stream: asyncio.StreamWriter, found: Any) -> None:
    """Send the answer; a client that is gone is ignored."""
    stream.write(pickle.dumps(found))
    with suppress(ConnectionError):
        await stream.drain()
