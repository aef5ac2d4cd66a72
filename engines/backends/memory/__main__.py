"""The server: `python -m engines.backends.memory SOCKET`, until SIGTERM or SIGINT.

Exit codes: 0 after a signal, 1 when another server has the socket.
"""

import asyncio
import fcntl
import inspect
import os
import resource
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from engines.backends.base import Backend, BackendError
from engines.backends.memory import wire
from engines.backends.memory.runtime import Runtime

ENDS = (signal.SIGTERM, signal.SIGINT)


def main(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"memory: another server has {path}", file=sys.stderr)
        return 1
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every running instance and connection takes a file descriptor
    asyncio.run(serve(path))
    return 0


async def serve(path: Path) -> None:
    """Serve until a signal. The caller holds the lock, and may thus replace the socket left by an earlier server."""
    runtime = Runtime()
    path.unlink(missing_ok=True)
    os.umask(0o177)
    with wire.short_path(path) as name:
        await asyncio.start_unix_server(lambda reader, writer: _take(runtime, reader, writer), name, backlog=wire.BACKLOG)
    over = asyncio.Event()
    for number in ENDS:
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    await over.wait()
    path.unlink(missing_ok=True)


async def _take(runtime: Runtime, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry out a call to its end, even if the caller goes away."""
    with closing(writer):
        question = await wire.read(reader)
        if question is None:
            return
        try:
            answer = (True, await _carry_out(runtime, *question))
        except BackendError as error:
            answer = (False, error)
        await wire.answer(writer, answer)


async def _carry_out(runtime: Runtime, name: str, arguments: tuple[Any, ...]) -> Any:
    """Call a verb or a control; the controls `get` and `set` read and write an attribute of the runtime."""
    if name in Backend.__abstractmethods__:
        runtime.check(name)
    if name in ("get", "set"):
        return {"get": getattr, "set": setattr}[name](runtime, *arguments)
    found = getattr(runtime, name)(*arguments)
    return await found if inspect.isawaitable(found) else found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
