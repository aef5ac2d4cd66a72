"""Run the engine until SIGTERM or SIGINT.

Exit codes: 0 after draining, 1 when the data folder cannot be used, 2 for a wrong environment, 98 when the port is taken.
Any other failure to listen on the port exits with its errno, or 1 without an errno.
"""

import os
import signal
import sqlite3
import sys
import threading

from . import server
from .engine import Engine
from .faults import Faults
from .settings import Settings, WrongSetting

WRONG_SETTING = 2
STOP = {signal.SIGTERM, signal.SIGINT}


def main() -> int:
    """The engine's life: listen, boot, serve, drain."""
    try:
        settings = Settings.read(os.environ)
    except WrongSetting as error:
        return _fail(str(error), WRONG_SETTING)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # in all threads: the main thread waits for the signals itself
    engine = Engine(settings, Faults(settings.fault_file))
    try:
        served = server.listen(engine)
    except OSError as error:
        return _fail(f"cannot listen on {settings.bind}:{settings.port}: {error.strerror}", error.errno or 1)
    # The server is never shut down: it answers 503 until the process ends. The poll interval matters only for a shutdown.
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 60}, daemon=True).start()
    try:
        ready = engine.boot(_is_stopped_within)
    except (OSError, sqlite3.Error) as error:
        return _fail(f"cannot use {settings.database}: {error}", 1)
    if ready:
        signal.sigwait(STOP)
    engine.drain()
    print("engine ended", flush=True)
    return 0


def _is_stopped_within(seconds: float) -> bool:
    return signal.sigtimedwait(STOP, seconds) is not None


def _fail(reason: str, code: int) -> int:
    print(f"engine: {reason}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
