"""The client side of the memory backend: every verb is a call of the server."""

import shlex
import sys
from collections.abc import Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import Any
from uuid import UUID

from engines.backends import parts
from engines.backends.base import (
    Backend,
    BackendError,
    BackendUnavailable,
    Instance,
    Made,
    OnEvicted,
    Owner,
    Ref,
    Spec,
    State,
    Usage,
    ignore,
)
from engines.backends.memory import wire
from engines.backends.memory.behaviour import Behaviour
from engines.backends.memory.runtime import wanted


class MemoryBackend(Backend):
    """Instances in the server at the Unix socket `path`; all processes with the same path see the same instances.

    `timeout_s`: seconds for one verb, beyond the grace of a stop. `bind`: address on which instances listen.

    Beyond the contract, tests may make trouble, seen by all processes:
    `behave()` makes instances hang, die, answer wrongly, or boot and stop slowly.
    `exit()` ends an instance. `say()` writes a line to its log. `fail_next()` makes the next call of a verb fail.
    `unavailable = True`: every verb raises BackendUnavailable and `observe` says UNKNOWN, until a test sets False.
    `missing_images`: image names for which `create` raises ImageMissing; all other images exist.
    `volumes`: ids of the engines with a volume.
    `usage`: the answer of `measure`; a volume that it leaves out takes 0 MB.
    `boot`: the answer of `identity`. A new text simulates a restart of the host. Every server begins with its own text.
    `reset()` removes all instances, volumes and trouble.
    """

    name = "memory"

    def __init__(self, path: Path, timeout_s: float = 30, *, bind: str = "127.0.0.1") -> None:
        self.path = path
        self.timeout_s = timeout_s
        self.bind = bind

    # -- the contract --------------------------------------------------------------------------------------------------

    def resolve(self, image: str, kept: str = "") -> str:
        return str(self._call("resolve", image, kept))

    def create(self, spec: Spec, *, on_evicted: OnEvicted = ignore) -> Made:
        made: Made = self._call("create", spec, self.bind)
        return made

    def start(self, ref: Ref, *, on_evicted: OnEvicted = ignore) -> None:
        self._call("start", ref, self.bind)

    def stop(self, ref: Ref, *, grace_s: float) -> None:
        self._call("stop", ref, grace_s, timeout_s=self.timeout_s + grace_s)

    def destroy(self, ref: Ref) -> None:
        self._call("destroy", ref)

    def retire(self, engine_id: UUID, *, but: Collection[Ref] = (), grace_s: float) -> Sequence[Ref]:
        retired: Sequence[Ref] = self._call("retire", engine_id, frozenset(but), grace_s, timeout_s=self.timeout_s + grace_s)
        return retired

    def remove(self, engine_id: UUID) -> None:
        self._call("remove", engine_id)

    def observe(self, ref: Ref) -> State:
        try:
            return State(self._call("observe", ref))
        except BackendError:
            return State.UNKNOWN

    def list(self, engine_id: UUID | None = None) -> Sequence[Instance]:
        found: Sequence[Instance] = self._call("list", engine_id)
        return found

    def differing(self, instance: Instance, spec: Spec) -> Sequence[str]:
        return parts.differing(instance.made_of, wanted(spec, self.bind))

    def list_volumes(self) -> Mapping[UUID, Owner]:
        found: Mapping[UUID, Owner] = self._call("list_volumes")
        return found

    def measure(self, engine_ids: Collection[UUID], *, budget_s: float) -> Usage:
        found: Usage = self._call("measure", frozenset(engine_ids))
        return found

    def identity(self) -> str:
        return str(self._call("identity"))

    def logs(self, ref: Ref, *, tail: int) -> Sequence[str]:
        found: Sequence[str] = self._call("logs", ref, tail)
        return found

    # -- trouble -------------------------------------------------------------------------------------------------------

    def behave(self, who: Collection[Ref | UUID] | None, behaviour: Behaviour) -> None:
        """Set the behaviour of instances from now on, also of instances made later; the latest call for an instance counts.

        `who`: instances, or engines with all their incarnations. None: every instance; all earlier calls are forgotten.
        """
        self._call("behave", None if who is None else frozenset(who), behaviour)

    def fail_next(self, verb: str, error: BackendError) -> None:
        """Let the next call of `verb` ("start", for example) raise `error` and change nothing; several errors apply in order."""
        self._call("fail_next", verb, error)

    def exit(self, ref: Ref) -> None:
        """Let a running instance end by itself, as after a crash."""
        self._call("exit", ref)

    def say(self, ref: Ref, line: str) -> None:
        """Let an instance write a line to its log."""
        self._call("say", ref, line)

    def reset(self) -> None:
        """Remove everything that tests made: instances, volumes and trouble."""
        self._call("reset")

    @property
    def unavailable(self) -> bool:
        return bool(self._call("get", "unavailable"))

    @unavailable.setter
    def unavailable(self, value: bool) -> None:
        self._call("set", "unavailable", value)

    @property
    def missing_images(self) -> frozenset[str]:
        return frozenset(self._call("get", "missing_images"))

    @missing_images.setter
    def missing_images(self, names: Set[str]) -> None:
        self._call("set", "missing_images", frozenset(names))

    @property
    def volumes(self) -> frozenset[UUID]:
        return frozenset(self._call("get", "volumes"))

    @volumes.setter
    def volumes(self, engine_ids: Set[UUID]) -> None:
        self._call("set", "volumes", frozenset(engine_ids))

    @property
    def usage(self) -> Usage:
        found: Usage = self._call("get", "usage")
        return found

    @usage.setter
    def usage(self, usage: Usage | Mapping[UUID, int]) -> None:
        self._call("set", "usage", usage if isinstance(usage, Usage) else Usage(dict(usage)))

    @property
    def boot(self) -> str:
        return str(self._call("get", "boot"))

    @boot.setter
    def boot(self, text: str) -> None:
        self._call("set", "boot", text)

    def _call(self, name: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """Let the server call `name`. Raises the call's own error, and BackendUnavailable when no server answers."""
        try:
            is_done, found = wire.ask(self.path, (name, arguments), self.timeout_s if timeout_s is None else timeout_s)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            command = shlex.join([sys.executable, "-m", "engines.backends.memory", str(self.path)])
            raise BackendUnavailable(f"the memory backend's server does not run; start it with `{command}`") from error
        except (OSError, EOFError) as error:
            raise BackendUnavailable(f"{name}: {error}") from error
        if not is_done:
            raise found
        return found
