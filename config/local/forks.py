"""Turns a fresh fork of a process with imported libraries (`config.local.preload`) into a process of `config.processes`.

The fork gets everything that a new interpreter would have: environment, signals, arguments, title, exit code. Only
/proc/PID/environ keeps the parent's values.
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

setproctitle.getproctitle()  # finds the title in memory by the original environment, which a fork replaces


def turn_into(process: Process, variables: Mapping[str, str]) -> NoReturn:
    """Become `process` with the environment `variables`, after a fork: run a Python module here, execute any other program."""
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
    except BaseException as error:  # noqa: BLE001 (the parent's code must not continue in the fork)
        print(f"{process.name}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def reset_signals() -> None:
    """Drop the parent's signal handlers, as executing a program would."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_module(name: str, arguments: list[str]) -> int:
    """Run `python -m name arguments` here, including the interpreter's exit functions; return the exit code."""
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as left:
        code = _exit_code(left)
    except BaseException:  # noqa: BLE001 (as the interpreter does)
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # joins threads, as multiprocessing does in its forks
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
