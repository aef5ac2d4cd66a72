"""The verbs of the backend contract on Docker; the daemon keeps all state, in names and labels of containers."""

import math
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from uuid import UUID

import structlog
from docker.errors import APIError

from engines.backends import log_text
from engines.backends.base import (
    Backend,
    BackendError,
    Egress,
    ImageUnfit,
    Instance,
    InstanceDiffers,
    InstanceMissing,
    Made,
    NetworkFull,
    NetworkUnguarded,
    OnEvicted,
    Owner,
    Ref,
    Spec,
    State,
    Usage,
    ignore,
    instance_name,
)
from engines.backends.docker import containers, images, log_reader, makings, name_servers, volumes, write_limits
from engines.backends.docker.containers import Found
from engines.backends.docker.daemon import Daemon, NotFound, is_about_network, is_conflict, named
from engines.backends.docker.egress import Confinement
from engines.backends.docker.guard import Guard
from engines.backends.docker.measurer import Measurer
from engines.backends.docker.networks import Networks
from engines.backends.docker.options import Options
from engines.backends.docker.roster import Roster

# A taken name without a container counts as lost after LOST_AFTER_S. A daemon seldom needs longer between reserving the name
# and creating the container. If the daemon does need longer, two containers exist, and `start` uses one of them.
LOST_AFTER_S = 2.0

log = structlog.get_logger(__name__)


class DockerBackend(Backend):
    """Engines as containers of the Docker daemon at `options.url`, on the local or a remote machine."""

    name = "docker"

    def __init__(self, options: Options) -> None:
        self.options = options
        self._daemon = Daemon(options.url, options.timeout_s)
        self._roster = Roster(self._daemon, options.deployment)
        self._networks = Networks(self._daemon, options)
        self._guard = Guard(self._daemon, options)
        self._measurer = Measurer(self._daemon, options)
        self._confinement = Confinement(self._guard, self._networks)
        self._write_limits: Mapping[str, Any] | None = None  # None: not known yet
        self._named = threading.local()  # `found`: the container found by the thread's last `create`
        self._lost: set[str] = set()  # names which the daemon keeps reserved for missing containers

    def resolve(self, image: str, kept: str = "") -> str:
        """The image's id; a registry's digest would name nothing on a host without the repository."""
        with self._daemon.verb("resolve"):
            return str(images.resolve(self._daemon, image, kept)["Id"])

    def create(self, spec: Spec, *, on_evicted: OnEvicted = ignore) -> Made:
        self._named.found = None
        self._confinement.want(spec.product, spec.egress)
        with self._daemon.verb("create"):
            for _ in self._daemon.rounds():
                found = self._roster.find(spec.ref)
                if found is None:
                    image = images.resolve(self._daemon, spec.image, spec.digest)
                    containers.check_image(spec.image, image["Config"])
                    if self._make(replace(spec, digest=image["Id"]), image["Config"], on_evicted):
                        return Made(str(image["Id"]), is_new=True)
                elif differs := makings.differing(found.made_of, spec, self.options):
                    raise InstanceDiffers(f"container {found.name} differs in {', '.join(differs)}")
                elif found.runs or self._is_as(found, spec):
                    self._named.found = found if found.name == self._name_of(spec.ref) else None
                    return Made(found.image, is_new=False)
                else:
                    self._discard(found.id, force=False)  # port and ulimits are fixed at the creation of a container
        raise AssertionError

    def _is_as(self, found: Found, spec: Spec) -> bool:
        """Whether a container has the port, and the limit on files, that the spec asks for now."""
        return (found.port, found.disk_mb) == (spec.port, volumes.disk_mb(spec.limits, self.options))

    def start(self, ref: Ref, *, on_evicted: OnEvicted = ignore) -> None:
        """Start the container under its engine's name, which the container then keeps as long as it exists.

        No container runs without its engine's name. A worker takes the name by removing the container with the name. The daemon
        refuses the removal of a running or starting container. Thus the daemon itself decides between workers unaware of each
        other. docs/decisions/0021 has the alternatives.
        """
        with self._daemon.verb("start"):
            self._guard.check()
            for _ in self._daemon.rounds():
                mine, others = self._recall(ref) or self._roster.find_among(ref)
                if mine.runs or (self._take_name(mine, others, on_evicted) and self._run(mine)):
                    if mine.reach == "container":
                        self._introduce(mine)
                    return

    def stop(self, ref: Ref, *, grace_s: float) -> None:
        with self._daemon.verb("stop"):
            for found in self._roster.of_instance(ref):
                if found.runs:
                    self._stop(found.id, grace_s)

    def destroy(self, ref: Ref) -> None:
        with self._daemon.verb("destroy"):
            for _ in self._daemon.rounds():
                mine = self._roster.of_instance(ref)
                for found in mine:
                    self._discard(found.id)
                if all(found.leaving for found in mine):
                    return

    def retire(self, engine_id: UUID, *, but: Collection[Ref] = (), grace_s: float) -> Sequence[Ref]:
        with self._daemon.verb("retire"):
            found = [each for each in self._roster.of_engine(engine_id) if each.ref not in but]
        for each in found:  # a verb per call, because a grace takes longer than a verb
            with self._daemon.verb("retire"):
                if each.runs:
                    self._stop(each.id, grace_s)
            with self._daemon.verb("retire"):
                self._discard(each.id)
        return [each.ref for each in found]

    def remove(self, engine_id: UUID) -> None:
        with self._daemon.verb("remove"):
            for _ in self._daemon.rounds():  # more than one if a delayed worker creates an instance in the middle
                for found in self._roster.of_engine_in_removal_too(engine_id):
                    self._discard(found.id)
                if volumes.remove(self._daemon, engine_id, self.options.deployment):
                    return
                self._measurer.end()  # may have the volume
                if volumes.remove(self._daemon, engine_id, self.options.deployment):
                    return

    def observe(self, ref: Ref) -> State:
        try:
            with self._daemon.verb("observe"):
                found = self._roster.find(ref)
        except BackendError:
            return State.UNKNOWN
        return found.state if found else State.ABSENT

    def list(self, engine_id: UUID | None = None) -> Sequence[Instance]:
        with self._daemon.verb("list"):
            found = self._roster.all() if engine_id is None else self._roster.of_engine(engine_id)
        return [
            Instance(each.ref, each.state, containers.open_port(each, self.options), each.made_of, each.owner) for each in found
        ]

    def differing(self, instance: Instance, spec: Spec) -> Sequence[str]:
        return makings.differing(instance.made_of, spec, self.options)

    def list_volumes(self) -> Mapping[UUID, Owner]:
        mine = {"label": [f"{containers.DEPLOYMENT}={self.options.deployment}"]}
        with self._daemon.verb("list_volumes"):
            found = self._daemon.ask(lambda api: api.volumes(filters=mine))["Volumes"] or []
        owners = {containers.engine_of(volume): containers.read_owner(volume["Labels"]) for volume in found}
        return {engine_id: owner for engine_id, owner in owners.items() if engine_id is not None}

    def measure(self, engine_ids: Collection[UUID], *, budget_s: float) -> Usage:
        present = sorted(self.list_volumes().keys() & set(engine_ids))
        with self._daemon.verb("measure"):
            return Usage.of(engine_ids, *self._measurer.measure(present, min(budget_s, self.options.timeout_s / 2)))

    def identity(self) -> str:
        """The id of Docker's default network, made anew at every daemon start, unless containers keep running across the restart.

        A daemon without a default network (`"bridge": "none"`) is identified by the time of the guard's last start.
        """
        with self._daemon.verb("identity"):
            try:
                return str(self._daemon.ask(lambda api: api.inspect_network("bridge"))["Id"])
            except NotFound:
                return self._guard.started_at()

    def tidy(self) -> int:
        """Remove networks without engines and attach missing clients to the remaining networks; returns the number removed.

        A missing guard is started again if engines run.
        """
        with self._daemon.verb("tidy"):
            found = self._roster.all()
            if any(each.runs for each in found):
                self._guard.check()
            return self._networks.tidy({each.network for each in found})

    def confine(self, look_up: Callable[[Set[str]], Mapping[str, Egress]]) -> bool:
        with self._daemon.verb("confine"):
            return self._confinement.confine(look_up)

    def join(self) -> int:
        with self._daemon.verb("join"):
            return self._networks.clients.attach_all()

    def stand_down(self) -> None:
        with self._daemon.verb("stand_down"):
            self._measurer.end()
            self._guard.end()

    def logs(self, ref: Ref, *, tail: int) -> Sequence[str]:
        with self._daemon.verb("logs"):
            found = self._roster.find(ref)
            if found is None or tail <= 0:
                return []
            try:
                written, is_cut = self._daemon.ask(lambda api: log_reader.read(api, found.id, tail))
            except NotFound:
                return []
        return log_text.last_lines(written, tail, is_cut=is_cut)

    def _name_of(self, ref: Ref) -> str:
        """The name of the engine's running instance, of any incarnation."""
        return instance_name(self.options.deployment, ref.engine_id)

    def _spare_name_of(self, ref: Ref) -> str:
        """The name of the instance before its first start, with a random suffix if the daemon lost the plain name."""
        name = containers.spare_name(self.options.deployment, ref)
        return f"{name}-{secrets.token_hex(3)}" if name in self._lost else name

    def _recall(self, ref: Ref) -> tuple[Found, Sequence[Found]] | None:
        """The instance as found by the thread's last `create`, if stopped and under its engine's name; else None.

        A container found with the name keeps the name as long as it exists, and no other container of the engine can run. Thus a
        new list of containers would say nothing new.
        """
        found: Found | None = getattr(self._named, "found", None)
        self._named.found = None
        return (found, ()) if found is not None and found.ref == ref and not found.runs else None

    def _make(self, spec: Spec, image: Mapping[str, Any] = MappingProxyType({}), on_evicted: OnEvicted = ignore) -> bool:
        """Create the container; False after clearing up a taken name or a missing network: the caller tries again.

        `image`: the configuration of its image.
        """
        name = self._spare_name_of(spec.ref)
        try:
            network = self._networks.place(spec.product)
        except NotFound:  # another worker is creating the network, or has just removed it
            self._networks.forget(spec.product)
            return False
        asked = name_servers.options(self._daemon, self._guard)
        if self._write_limits is None:
            self._write_limits = write_limits.find(self._daemon, self._guard, self.options)
        labels, declared = image.get("Labels") or (), image.get("Volumes") or ()
        config = containers.config(spec, network, self.options, asked, labels, declared, self._write_limits or {})
        try:
            self._daemon.create(config, name)
            if declared:
                self._check_volumes(name, spec.ref.engine_id)
        except APIError as refused:
            if is_about_network(refused):
                self._networks.forget(spec.product)
            elif is_conflict(refused):
                self._clear_name(name, spec.ref.engine_id, on_evicted)
            else:
                raise
            return False
        return True

    def _check_volumes(self, name: str, engine_id: UUID) -> None:
        """Remove a new container for which the daemon made volumes of its own. Raises ImageUnfit."""
        try:
            made = self._daemon.ask(lambda api: api.inspect_container(name))
        except NotFound:  # removed by another worker: the caller's next step finds out
            return
        try:
            volumes.check(made, engine_id)
        except ImageUnfit:
            self._discard(made["Id"])
            raise

    def _take_name(self, mine: Found, others: Sequence[Found], on_evicted: OnEvicted) -> bool:
        """Give the engine's name to the instance; False if another worker was faster: the caller lists the containers again."""
        name = self._name_of(mine.ref)
        if mine.name == name:
            return True
        for other in others:
            if other.name == name:
                self._discard(other.id, force=False)
        try:
            self._daemon.ask(lambda api: api.rename(mine.id, name))
        except NotFound:
            return False
        except APIError as refused:
            if not is_conflict(refused):
                raise
            self._clear_name(name, mine.ref.engine_id, on_evicted)
            return False
        return True

    def _run(self, mine: Found) -> bool:
        """Start a container with its engine's name; False after repairing or changing its network: the caller tries again."""
        try:
            self._confinement.prepare(mine.network, mine.product)
            self._daemon.ask(lambda api: api.start(mine.id))
        except APIError as refused:
            if is_about_network(refused):
                self._change_network(mine, self._networks.restore)
            elif isinstance(named(refused, "start"), NetworkFull):
                self._change_network(mine, self._networks.move)
            else:
                raise
            return False
        return True

    def _change_network(self, mine: Found, change: Callable[[Found], None]) -> None:
        """Give an instance a working network in place of a full or removed network.

        Raises InstanceMissing where engines are reached by name: the instance is removed and must be made again, because a
        container keeps its MAC address only on the network of its creation.
        """
        if self.options.reach == mine.reach == "port":
            change(mine)
            return
        self._networks.forget(mine.product)
        self._discard(mine.id, force=False)
        raise InstanceMissing(f"network {mine.network} is full or gone: the instance has to be made again")

    def _introduce(self, mine: Found) -> None:
        """Announce the engine's IP and MAC address on its network. Raises NetworkUnguarded.

        The guard recognizes engines by MAC address. An engine with a wrong MAC address would escape the rules, and is stopped.
        """
        wanted = containers.mac_address(self.options.deployment, mine.port)
        try:
            found = self._daemon.ask(lambda api: api.inspect_container(mine.id))
        except NotFound:
            return
        if not found["State"]["Running"]:
            return
        networks = found["NetworkSettings"]["Networks"]
        if [network["MacAddress"] for network in networks.values()] != [wanted]:
            self._stop(mine.id, 0)
            raise NetworkUnguarded(f"engine {mine.ref.engine_id} did not start with MAC address {wanted}")
        ((name, network),) = networks.items()
        self._guard.announce(self._networks.bridge_of(name), network["IPAddress"], wanted)

    def _stop(self, container_id: str, grace_s: float) -> None:
        with suppress(NotFound):  # removed by hand, or by another worker
            self._daemon.ask(lambda api: api.stop(container_id, timeout=math.ceil(grace_s)))

    def _discard(self, container_id: str, *, force: bool = True) -> None:
        """Remove a container and the anonymous volumes of its image; without `force` a running container stays.

        A container already in removal by another worker may still exist afterwards, and stays for good if the worker does not use
        `force` and is refused. The caller lists the containers again.
        """
        try:
            self._daemon.ask(lambda api: api.remove_container(container_id, v=True, force=force))
        except NotFound:
            return
        except APIError as refused:
            if not is_conflict(refused):
                raise

    def _clear_name(self, name: str, engine_id: UUID, on_evicted: OnEvicted) -> None:
        """Remove a container with the engine's name but without the engine's labels, or with a removal ended half-way.

        Any other container with the engine's labels stays: the caller lists the containers again. A name may be taken without a
        container. Then another worker is just creating the container, or the name is lost until the daemon's next start. Docker
        20.10 loses a name if a rename fails on a container removed in the meantime: the daemon reserves the old name again.
        """
        try:
            holder = self._daemon.ask(lambda api: api.inspect_container(name))
        except NotFound:
            if self._daemon.spent() > LOST_AFTER_S:
                self._lost.add(name)
            return
        labels = holder["Config"]["Labels"] or {}
        if (labels.get(containers.DEPLOYMENT), labels.get(containers.ENGINE)) != (self.options.deployment, str(engine_id)):
            log.warning("stranger_removed", container=holder["Id"][:12], name=name)
            self._discard(holder["Id"])
            on_evicted(holder["Id"][:12])
        elif holder["State"]["Status"] in ("removing", "dead"):
            self._discard(holder["Id"])
