"""supervisord for our own programs: a program is a fork of supervisord with imported libraries, not a new interpreter.

python -m config.local.supervisor -c CONFIGURATION
"""

import os
from typing import Any, NoReturn

import setproctitle
from supervisor.options import ServerOptions
from supervisor.supervisord import go

from config import processes
from config.local import forks, preload


class Options(ServerOptions):  # type: ignore[misc]  # supervisor is not typed
    """supervisord's options; a child forked by supervisord calls `execve` as its last step."""

    def execve(self, filename: str, argv: list[str], env: dict[str, str]) -> NoReturn:
        # supervisord's files are closed by now, but its objects still have the numbers of the descriptors. Finalizing the objects
        # would close files of ours with equal numbers: the child must never return from here, and must end without finalizers.
        forks.turn_into(processes.BY_NAME[argv[-1]], env)


class Interface:
    """Our own XML-RPC calls, beside supervisord's."""

    def load(self, variables: dict[str, str]) -> bool:
        """Import the libraries of `prepare` and `web`, and give `variables` to all processes started later."""
        os.environ.update(variables)
        preload.load(preload.FIRST)
        return True

    def load_rest(self) -> bool:
        """Import the libraries needed only by workers."""
        preload.load(preload.REST)
        return True


def make_interface(supervisord: Any, **config: Any) -> Interface:
    """The factory named in `[rpcinterface:roundhouse]`."""
    return Interface()


def main() -> None:
    setproctitle.setproctitle("roundhouse: supervisor")
    options = Options()
    options.realize()
    options.first, options.test = True, False
    go(options)
    options.close_httpservers()
    options.close_logger()


if __name__ == "__main__":
    main()
