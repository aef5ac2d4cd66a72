"""A worker for the tests to kill and freeze: `python -m tests.engines.backends.worker ROOT VERB ENGINE_ID INCARNATION`.

Prints "ready", waits for a line on stdin, then calls the verb and prints how it went.
"""

import sys
from pathlib import Path
from uuid import UUID

from engines.backends.base import BackendError, Ref
from engines.backends.process.backend import SubprocessBackend


def main(root: str, verb: str, engine_id: str, incarnation: str) -> None:
    backend = SubprocessBackend(Path(root), timeout_s=15)
    ref = Ref(UUID(engine_id), int(incarnation))
    calls = {"start": lambda: backend.start(ref), "remove": lambda: backend.remove(ref.engine_id)}
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        calls[verb]()
    except BackendError as error:
        print(error.code, flush=True)
    else:
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
