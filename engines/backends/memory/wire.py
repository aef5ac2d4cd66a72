"""The connection between a backend and its server: one question, one answer, both pickled, each up to the end of its stream.

The socket is a file in a folder of ours that nobody else may enter, so both sides trust what they read.
"""

import asyncio
import os
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BACKLOG = 4_096  # with less, a burst of calls is refused at once: a Unix socket does not let its caller wait
PART = 65_536  # bytes


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for the socket `path` that fits into the 107 bytes of a socket's address, however deep its folder lies."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(path: Path, question: Any, timeout_s: float) -> Any:
    """Send `question` to the server at `path`; its answer. Raises OSError, EOFError when the server ended in the middle."""
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
    """The question on a connection; None where the other side only looked whether somebody listens."""
    question = await stream.read(-1)
    return pickle.loads(question) if question else None  # noqa: S301 (see above)


async def answer(stream: asyncio.StreamWriter, found: Any) -> None:
    """Answer, unless whoever asked has gone."""
    stream.write(pickle.dumps(found))
    with suppress(ConnectionError):
        await stream.drain()
