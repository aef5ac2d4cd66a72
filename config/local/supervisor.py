"""supervisord, but for our own programs: they are forks of it that have their libraries already, not new interpreters.

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
    """How supervisord does what it does; `execve` is the last step of a child that it has forked."""

    def execve(self, filename: str, argv: list[str], env: dict[str, str]) -> NoReturn:
        # What supervisord had open is closed by now, but its objects still have the numbers of those descriptors. They must not
        # be finalized, or they would close files of ours: so the child never returns from here, and ends without finalizers.
        forks.turn_into(processes.BY_NAME[argv[-1]], env)


class Interface:
    """XML-RPC calls of ours, beside supervisord's own."""

    def load(self, variables: dict[str, str]) -> bool:
        """Import what `prepare` and `web` are made of, and have processes that start from now on get these variables."""
        os.environ.update(variables)
        preload.load(preload.FIRST)
        return True

    def load_rest(self) -> bool:
        """Import what only workers need."""
        preload.load(preload.REST)
        return True


def make_interface(supervisord: Any, **config: Any) -> Interface:
    """What `[rpcinterface:roundhouse]` names."""
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
