"""A fresh fork of a process that has imported our libraries (`config.local.preload`), turned into one of the list.

The fork has what a new interpreter would have: environment, signals, arguments, title, exit code. Only /proc/PID/environ stays as
the parent's.
"""

import os
import runpy
import signal
import sys
import threading
import traceback
from atexit import _run_exitfuncs as run_exit_functions
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

import setproctitle

from config.processes import Process, settle

setproctitle.getproctitle()  # it finds the title's place in memory by the environment, which a fork replaces


def turn_into(process: Process, variables: Mapping[str, str]) -> NoReturn:
    """Become that process with this environment, after a fork. A program in Python runs here, any other one is executed."""
    code = 127
    try:
        reset_signals()
        os.environ.clear()
        os.environ.update(variables)
        argv = settle(process)
        if argv[:2] != [sys.executable, "-m"]:
            os.execve(argv[0], argv, os.environ)
        setproctitle.setproctitle(f"roundhouse: {process.name}")
        code = run_module(argv[2], argv[3:])
    except BaseException as error:  # noqa: BLE001 (nothing of the parent's may go on in here)
        print(f"{process.name}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def reset_signals() -> None:
    """Forget the parent's handlers, as an executed program would."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_module(name: str, arguments: list[str]) -> int:
    """Run `python -m name arguments` here, to the very end of the interpreter's exit; its exit code."""
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = _exit_code(left)
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # joins threads, as multiprocessing has its forks do
    run_exit_functions()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return code


def _exit_code(left: SystemExit) -> int:
    if left.code is None or isinstance(left.code, int):
        return left.code or 0
    print(left.code, file=sys.stderr)
    return 1
