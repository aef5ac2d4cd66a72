"""The server's instances and volumes, and the verbs on them. Everything runs on one event loop, and needs no locks.

The verbs are the verbs of `engines.backends.base.Backend`. Tests make trouble with `behave`, `exit`, `say`, `fail_next` and
five attributes; `MemoryBackend` explains all of them.
"""

import asyncio
import builtins
import hashlib
from collections import defaultdict, deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

from engines.backends import parts
from engines.backends.base import (
    BackendError,
    BackendUnavailable,
    ImageMissing,
    Instance,
    InstanceDiffers,
    InstanceMissing,
    Made,
    OtherRuns,
    Owner,
    PortTaken,
    Ref,
    Spec,
    State,
    Usage,
    parse_image,
    refuse_runtime,
)
from engines.backends.memory.behaviour import Behaviour
from engines.backends.memory.door import Door


class Run:
    """A run of an instance, from its start to its end."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.began = asyncio.get_running_loop().time()
        self.is_draining = False
        self.death: asyncio.TimerHandle | None = None
        self.over = asyncio.Event()

    def end(self) -> None:
        if self.death:
            self.death.cancel()
        self.door.close()
        self.over.set()


@dataclass
class Kept:
    """An instance, running or not."""

    port: int
    digest: str
    made_of: Mapping[str, str]
    key_hash: str
    owner: Owner
    run: Run | None = None
    boots: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def state(self) -> State:
        if self.run:
            return State.RUNNING
        return State.EXITED if self.boots else State.CREATED

    def end(self, line: str) -> None:
        """End the current run, if any; `line` goes to the log."""
        if self.run:
            self.run.end()
            self.run = None
            self.lines.append(line)


class Runtime:
    """Instances, volumes, and the trouble made by tests. Must be created on a running event loop."""

    def __init__(self) -> None:
        self._own_boot = uuid4().hex
        self._instances: dict[Ref, Kept] = {}
        self._forget_everything()

    def _forget_everything(self) -> None:
        self.unavailable = False
        self.missing_images: frozenset[str] = frozenset()
        self.volumes: frozenset[UUID] = frozenset()
        self._owners: dict[UUID, Owner] = {}  # of volumes that instances were made with
        self.usage = Usage({})
        self.boot = self._own_boot
        self._failures: defaultdict[str, deque[BackendError]] = defaultdict(deque)
        self._orders: list[tuple[frozenset[Ref | UUID] | None, Behaviour]] = []

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def check(self, verb: str) -> None:
        """Raise the error set by a test for the next `verb`, if any."""
        if self.unavailable:
            raise BackendUnavailable("the memory backend is set unavailable")
        if self._failures[verb]:
            raise self._failures[verb].popleft()

    def resolve(self, image: str, kept: str) -> str:
        parse_image(image)
        if kept and kept not in self.missing_images:
            return kept
        if image in self.missing_images:
            raise ImageMissing(f"no image {image}")
        return image if image.startswith("sha256:") else f"sha256:{hashlib.sha256(image.encode()).hexdigest()}"

    def create(self, spec: Spec, address: str) -> Made:
        refuse_runtime(spec, "memory")
        kept = self._instances.get(spec.ref)
        if kept is not None and (differs := parts.differing(kept.made_of, wanted(spec, address))):
            raise InstanceDiffers(f"the instance differs in {', '.join(differs)}")
        is_new = kept is None
        if kept is None:
            digest, key_hash = self.resolve(spec.image, spec.digest), spec.env.get("ENGINE_KEY_HASH", "")
            made_of = {**wanted(spec, address), "image": digest}
            kept = self._instances[spec.ref] = Kept(spec.port, digest, made_of, key_hash, spec.owner)
        self._add_volume(spec)
        if kept.run is None:
            kept.port = spec.port
        return Made(kept.digest, is_new)

    def _add_volume(self, spec: Spec) -> None:
        engine_id = spec.ref.engine_id
        if engine_id not in self.volumes:
            self.volumes |= {engine_id}
            self._owners[engine_id] = replace(spec.owner, image="")

    def start(self, ref: Ref, address: str) -> None:
        kept = self._instances.get(ref)
        if kept is None:
            raise InstanceMissing(f"engine {ref.engine_id} has no incarnation {ref.incarnation}")
        if kept.run:
            return
        for other, found in self._instances.items():
            if found.run and other.engine_id == ref.engine_id:
                raise OtherRuns(f"incarnation {other.mark} of engine {ref.engine_id} is running")
            if found.run and found.port == kept.port:
                raise PortTaken(f"port {kept.port} is taken")
        run = kept.run = Run(Door(address, kept.port, kept.key_hash, lambda: self._behaviour_now(ref, run)))
        kept.boots += 1
        kept.lines.append(f"started, boot {kept.boots}")
        self._let_die(ref, kept)

    async def stop(self, ref: Ref, grace_s: float) -> None:
        """Wait for the end of the run; the server carries out other calls meanwhile."""
        kept = self._instances.get(ref)
        if kept is None or kept.run is None:
            return
        run = kept.run
        run.is_draining = True
        seconds = min(self._behaviour(ref).stop_s, grace_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(run.over.wait(), seconds)
        if kept.run is run:
            kept.end("stopped")

    def destroy(self, ref: Ref) -> None:
        if kept := self._instances.pop(ref, None):
            kept.end("destroyed")

    async def retire(self, engine_id: UUID, but: frozenset[Ref], grace_s: float) -> builtins.list[Ref]:
        found = [ref for ref in self._instances if ref.engine_id == engine_id and ref not in but]
        for ref in found:
            await self.stop(ref, grace_s)
            self.destroy(ref)
        return found

    def remove(self, engine_id: UUID) -> None:
        self.volumes -= {engine_id}
        for ref in [ref for ref in self._instances if ref.engine_id == engine_id]:
            self.destroy(ref)

    def observe(self, ref: Ref) -> State:
        kept = self._instances.get(ref)
        return kept.state if kept else State.ABSENT

    def list(self, engine_id: UUID | None) -> builtins.list[Instance]:
        of_whom = self._instances.items() if engine_id is None else self._of(engine_id)
        return [Instance(ref, kept.state, kept.port, kept.made_of, kept.owner) for ref, kept in of_whom]

    def _of(self, engine_id: UUID) -> builtins.list[tuple[Ref, Kept]]:
        return [(ref, kept) for ref, kept in self._instances.items() if ref.engine_id == engine_id]

    def list_volumes(self) -> dict[UUID, Owner]:
        return {engine_id: self._owners.get(engine_id, Owner()) for engine_id in self.volumes}

    def measure(self, engine_ids: frozenset[UUID]) -> Usage:
        return replace(self.usage, used_mb={each: self.usage.used_mb.get(each, 0) for each in engine_ids})

    def identity(self) -> str:
        return self.boot

    def logs(self, ref: Ref, tail: int) -> builtins.list[str]:
        kept = self._instances.get(ref)
        return kept.lines[-tail:] if kept and tail > 0 else []

    # -- trouble -------------------------------------------------------------------------------------------------------

    def fail_next(self, verb: str, error: BackendError) -> None:
        self._failures[verb].append(error)

    def exit(self, ref: Ref) -> None:
        if kept := self._instances.get(ref):
            kept.end("exited")

    def say(self, ref: Ref, line: str) -> None:
        if kept := self._instances.get(ref):
            kept.lines.append(line)

    def behave(self, who: frozenset[Ref | UUID] | None, behaviour: Behaviour) -> None:
        if who is None:
            self._orders.clear()
        self._orders.append((who, behaviour))
        for ref, kept in self._instances.items():
            if _is_among(ref, who):
                self._let_die(ref, kept)

    def reset(self) -> None:
        for ref in [*self._instances]:
            self.destroy(ref)
        self._forget_everything()

    def _behaviour(self, ref: Ref) -> Behaviour:
        """The behaviour set last for the instance."""
        return next((behaviour for who, behaviour in reversed(self._orders) if _is_among(ref, who)), Behaviour())

    def _behaviour_now(self, ref: Ref, run: Run) -> Behaviour:
        behaviour = self._behaviour(ref)
        if run.is_draining:
            return replace(behaviour, status=503, body=b'{"status": "draining"}')
        if asyncio.get_running_loop().time() < run.began + behaviour.boot_s:
            return replace(behaviour, status=503, body=b'{"status": "starting"}')
        return behaviour

    def _let_die(self, ref: Ref, kept: Kept) -> None:
        """Plan the end of the run as its behaviour says; a death planned under an earlier behaviour is cancelled."""
        if kept.run is None:
            return
        if kept.run.death:
            kept.run.death.cancel()
        after_s = self._behaviour(ref).dies_after_s
        if after_s is None:
            return
        if after_s <= 0:
            kept.end("exited")
        else:
            kept.run.death = asyncio.get_running_loop().call_later(after_s, kept.end, "exited")


def wanted(spec: Spec, address: str) -> dict[str, str]:
    """What an instance of the spec has to be made of, as `Instance.made_of` has it."""
    image = {"image": spec.digest} if spec.digest else {}
    return {**parts.of_environment(spec.env), "address": address, **image}


def _is_among(ref: Ref, who: frozenset[Ref | UUID] | None) -> bool:
    return who is None or ref in who or ref.engine_id in who
