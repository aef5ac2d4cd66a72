"""A program that says what it finds; test_forks runs it in a fork."""

import atexit
import json
import os
import signal
import sys
import threading
from pathlib import Path

if __name__ == "__main__":
    atexit.register(print, "at exit")
    threading.Timer(0.2, print, ["thread ended"]).start()
    names = ("ORCH_PROCESS", "ORCH_DATABASE_OWNER_URL", "GIVEN", "PARENTS")
    found = {
        "arguments": sys.argv[1:],
        "environment": {name: os.environ.get(name) for name in names},
        "title": Path("/proc/self/cmdline").read_text().rstrip("\0 "),
        "handled": [number for number in signal.valid_signals() if callable(signal.getsignal(number))],
        "niceness": os.nice(0),
    }
    print(json.dumps(found))
    sys.exit(3)
