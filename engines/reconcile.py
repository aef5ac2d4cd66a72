"""Makes the runtime agree with the registry.

Instances of destroyed engines and of old incarnations are removed. Engines that the registry does not have are noted, and left to
a person (`engines.unregistered`). Instances of stopped and sleeping engines are stopped. After a host came back, its engines are
restarted. Running engines obey the present rule `egress` of their products.

The registry is the truth. An engine with an open operation is left to the operation. Destroying an instance is safe at any time,
because neither the id of a destroyed engine nor the mark of an incarnation is ever used again. A disowned engine belongs to the
deployment from which this database was copied, and is left alone. Stops and restarts go through an operation.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from threading import Event
from typing import Any
from uuid import UUID

import structlog
from django.db import Error, connection
from django.db.models import QuerySet

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM
from common import times
from common.settings import settings
from engines import backends, hosts, lifecycle, operations, sightings, specs, unregistered
from engines.backends.base import BackendError, BackendUnavailable, Egress, Instance, Owner, Ref, State
from engines.models import NO_VOLUME, Engine, Operation, Status, Trigger, UnregisteredEngine
from engines.sightings import Watched
from policy import overrides, products, rules

log = structlog.get_logger(__name__)

_just_started = Event()  # set when this process starts: engines may have died while no process watched them


def host_is_settled() -> bool:
    """Whether a failed probe counts against an engine: the host's runtime answers, and was not started again.

    While the runtime does not answer, the state of its engines is unknown, not failed. After the runtime came back, its engines
    are resumed before any probe counts; likewise after the start of a process that judges engines.
    """
    try:
        identity = backends.get().identity()
        is_known = hosts.is_known(identity)
        if is_known and not _just_started.is_set():
            return True
        resumed = resume(_cause(is_known=is_known))  # another process may note the new identity meanwhile
    except BackendUnavailable as error:  # also raised in the middle of resuming: the next call resumes again
        hosts.mark_unreachable()
        log.warning("backend_unavailable", error=str(error))
        return False
    if not is_known and (resumed or hosts.was_seen()):
        log.warning("host_came_back", resumed=resumed)
    elif resumed:
        log.warning("engines_resumed", resumed=resumed)
    hosts.mark_seen(identity)
    _just_started.clear()
    return False


def begin() -> None:
    """Called when a process that judges engines starts: resume dead engines, now or at the latest before the first judgement."""
    _just_started.set()
    try:
        host_is_settled()
    except Error as error:
        log.warning("not_resumed", error=type(error).__name__)
    finally:
        connection.close()


def look() -> None:
    """Called when a process starts that carries out provisions: note which engines are not registered, as after a restore."""
    try:
        _note(_list_by_engine())
    except (BackendError, Error) as error:
        log.warning("not_compared", error=type(error).__name__)
    finally:
        connection.close()


def sweep() -> int:
    """Reconcile all instances with the registry; returns the number of corrections, 0 while the runtime does not answer."""
    watched = sightings.watched()  # before the list
    found = _by_engine()
    if found is None:
        return 0
    corrections = _judge(sightings.compare(watched, found))
    _note_what_runs(found)
    with suppress(BackendError):
        corrections += _agree(found)
        backends.get().tidy()
    return corrections


@dataclass(frozen=True)
class Differences:
    """What differs between runtime and registry, beside engines with an open operation.

    `unregistered`: engines that only the runtime has. `without_volume`: engines that have run before, and have no volume.
    `faulty`: engines with an instance or a volume that a sweep removes or stops.
    """

    unregistered: Sequence[UnregisteredEngine]
    without_volume: Sequence[Engine]
    faulty: Sequence[UUID]


def compare() -> Differences:
    """Compare runtime and registry, and change nothing. Raises BackendUnavailable, BackendError."""
    asked_at = times.database_now()
    found, volumes = _list_by_engine(), backends.get().list_volumes()
    left = [owner.pk for owner in _owners_of_left_volumes(volumes.keys() - found.keys())]
    return Differences(
        sorted(unregistered.find(found, volumes).values(), key=lambda each: (each.product_slug, each.user_id, str(each.pk))),
        list(_have_run(asked_at).exclude(pk__in=volumes).select_related("product").order_by("product__slug", "user_id")),
        [*_suspects(found), *left],
    )


def agree() -> int:
    """Correct the instances and volumes of the engines that the registry knows, and note what it does not know.

    Returns the number of corrections. Starts nothing. Raises BackendUnavailable, BackendError.
    """
    return _agree(_list_by_engine())


def _agree(found: Mapping[UUID, list[Instance]]) -> int:
    corrections = _correct_all(found)  # first: needs no list of volumes, which may fail
    volumes = _note(found)
    for owner in _owners_of_left_volumes(volumes.keys() - found.keys()):
        corrections += _corrected(owner.pk, partial(_remove_volume, owner))
    return corrections


def _note(found: Mapping[UUID, list[Instance]]) -> Mapping[UUID, Owner]:
    """Store which engines are not registered, whose instances differ, and who has no volume. Returns the owners of the volumes.

    Raises BackendUnavailable, BackendError.
    """
    asked_at = times.database_now()
    volumes = backends.get().list_volumes()
    unregistered.note(found, volumes)
    _note_differing(found)
    _note_without_volume(volumes, asked_at)
    return volumes


def _note_if_possible(found: Mapping[UUID, list[Instance]]) -> None:
    """The same; a list of volumes that cannot be made is only logged. Raises BackendUnavailable."""
    try:
        _note(found)
    except BackendUnavailable:
        raise
    except BackendError as error:
        log.warning("not_compared", error=type(error).__name__)


def _correct_all(found: Mapping[UUID, list[Instance]]) -> int:
    """Correct every instance with a fault; returns the number of corrections. Raises BackendUnavailable."""
    return sum(_corrected(suspect, partial(_reconcile, suspect, found[suspect])) for suspect in _suspects(found))


def _judge(faults: Mapping[Watched, str]) -> int:
    """Count noted answers, and mark engines as failed whose instances have ended, by a list of the runtime; returns how many.

    After a restart of the host or its runtime, the engines are resumed instead.
    """
    sightings.confirm(faults)
    return sightings.fail(faults) if any(faults.values()) and host_is_settled() else 0


def _corrected(engine_id: UUID, correct: Callable[[], int]) -> int:
    """Run `correct` for an engine; returns its number of corrections, or 0 after an error, which must not stop the sweep.

    Raises BackendUnavailable when the runtime is away altogether.
    """
    try:
        return correct()
    except BackendError as error:
        log.warning("not_reconciled", engine_id=str(engine_id), code=error.code, error=str(error))
        backends.get().identity()  # raises BackendUnavailable while the runtime is away
        return 0


def _owners_of_left_volumes(left: Set[UUID]) -> list[Engine]:
    """Destroyed engines with a volume but no instance: a late worker died while creating an instance."""
    return list(Engine.objects.select_related("product").filter(pk__in=left, disowned=False).exclude(destroyed_at=None))


def _remove_volume(owner: Engine) -> int:
    backends.get().remove(owner.pk)
    _record(owner, {"reason": "engine_destroyed"})
    return 1


def _note_what_runs(found: Mapping[UUID, Iterable[Instance]]) -> None:
    """Update `may_run` of all failed engines: a failed engine keeps its room while its instance runs.

    In every other state, the state itself says whether an instance may run.
    """
    running = [engine_id for engine_id, instances in found.items() if any(each.state == State.RUNNING for each in instances)]
    failed = Engine.objects.filter(status=Status.FAILED)
    failed.filter(may_run=True).exclude(pk__in=running).update(may_run=False)
    failed.filter(may_run=False, pk__in=running).update(may_run=True)


def _note_differing(found: Mapping[UUID, Iterable[Instance]]) -> None:
    """Store on every living engine in which parts its instance differs. An engine without its instance differs in none.

    Pages and `manage.py doctor` count what is stored: neither asks the runtime. Only rows with a change are written.
    """
    backend = backends.get()
    owners = Engine.objects.living().filter(pk__in=found).select_related("product")
    now: dict[str, list[UUID]] = defaultdict(list)
    for owner, spec in specs.of_valid(owners):
        instance = next((each for each in found[owner.pk] if each.ref == spec.ref), None)
        differs = ",".join(backend.differing(instance, spec)) if instance else ""
        if differs != owner.differs:
            now[differs].append(owner.pk)
    for differs, engine_ids in now.items():
        Engine.objects.filter(pk__in=engine_ids).update(differs=differs)
    Engine.objects.differing().exclude(pk__in=found).update(differs="")


def _note_without_volume(volumes: Mapping[UUID, Owner], asked_at: datetime) -> None:
    """Store on every engine that had run before `asked_at`, when the runtime was asked, whether it has no volume."""
    Engine.objects.without_volume().filter(pk__in=volumes).update(differs="")
    _have_run(asked_at).exclude(pk__in=volumes).exclude(differs=NO_VOLUME).update(differs=NO_VOLUME)


def _have_run(before: datetime) -> "QuerySet[Engine]":
    """The living engines that had run before then, and thus had a volume."""
    return Engine.objects.living().filter(provisioned_at__lt=before).exclude(status=Status.DESTROYING)


def join() -> None:
    """Connect this process to the engines' networks before its first probe. After a failure, a later sweep tries again."""
    try:
        backends.get().join()
    except BackendError as error:
        log.warning("not_joined", error=str(error))


def engine(engine_id: UUID) -> int:
    """Reconcile a single engine; returns the number of corrections."""
    with suppress(BackendError):
        return _corrected(engine_id, lambda: _reconcile(engine_id, (_by_engine() or {}).get(engine_id, [])))
    return 0


def _by_engine() -> dict[UUID, list[Instance]] | None:
    """The instances of the runtime, by engine id; None while the runtime does not answer, or answers with an error."""
    try:
        return _list_by_engine()
    except BackendError as error:
        log.warning("backend_unavailable", error=str(error))
        return None


def _list_by_engine() -> dict[UUID, list[Instance]]:
    found: dict[UUID, list[Instance]] = defaultdict(list)
    for instance in backends.get().list():
        found[instance.ref.engine_id].append(instance)
    return found


def _suspects(found: Mapping[UUID, list[Instance]]) -> list[UUID]:
    """Ids of the engines that need a correction, by two queries for the whole fleet.

    The registry is read after the runtime, because an engine's row exists before its first instance.
    """
    busy = set(Operation.objects.open().filter(engine__in=found).values_list("engine_id", flat=True))
    owners = Engine.objects.filter(pk__in=found).exclude(pk__in=busy)
    return [owner.pk for owner in owners if any(_fault(owner, instance) for instance in found[owner.pk])]


def _fault(owner: Engine, instance: Instance) -> str:
    """The fault of an instance whose engine has no open operation: a single word, empty for no fault."""
    if owner.disowned:
        return ""
    if owner.destroyed_at is not None:
        return "engine_destroyed"
    if instance.ref != specs.ref_of(owner):
        return "old_incarnation"
    should_not_run = owner.status in (Status.STOPPED, Status.SLEEPING)
    return "runs" if should_not_run and instance.state == State.RUNNING else ""


def _reconcile(engine_id: UUID, instances: Iterable[Instance]) -> int:
    """Correct the faults of an engine's instances by its present row; returns the number of corrections."""
    owner = Engine.objects.select_related("product").filter(pk=engine_id).first()
    # An instance without an engine row is left alone: nothing that is not registered is removed without a person's word.
    if owner is None or operations.find_open(owner) is not None:
        return 0
    return sum(_correct(owner, instance, fault) for instance in instances if (fault := _fault(owner, instance)))


def _correct(owner: Engine, instance: Instance, fault: str) -> bool:
    """Remove or stop the instance; False when the instance was stopped after it was listed."""
    if fault != "runs":
        _remove(owner, instance.ref, fault)
        return True
    if backends.get().observe(instance.ref) != State.RUNNING:
        return False
    lifecycle.stop_again(owner.pk, by=SYSTEM)
    return True


def _remove(owner: Engine, ref: Ref, reason: str) -> None:
    backend = backends.get()
    if owner.destroyed_at is not None:
        backend.remove(ref.engine_id)
    else:
        backend.destroy(ref)
    _record(owner, {"incarnation": ref.incarnation, "reason": reason})


def _record(owner: Engine, metadata: Mapping[str, Any]) -> None:
    trail.record(Action.ORPHAN_REMOVED, lifecycle.subject(owner), by=SYSTEM, metadata=metadata)
    log.warning("orphan_removed", engine_id=str(owner.pk), **metadata)


def confine() -> bool:
    """Make running engines obey the present rule `egress` of their products; returns whether anything had to be changed."""
    try:
        changed = backends.get().confine(_egress_of)
    except BackendError as error:
        log.warning("not_confined", code=error.code, error=str(error))
        return False
    if changed:
        log.info("egress_changed")
    return changed


def _egress_of(slugs: Set[str]) -> dict[str, Egress]:
    """Where the engines of these products may open connections now; without deleted products, which have no engines."""
    internet = settings.ENV.engine_internet
    return {found.slug: rules.choose_egress(overrides.in_force(found), internet) for found in products.with_slugs(slugs)}


def _cause(*, is_known: bool) -> Trigger:
    """Why engines do not run that should. A host that never answered before was not started again."""
    return Trigger.HOST_RESTARTED if hosts.was_seen() and not is_known else Trigger.RECONCILED


def resume(trigger: Trigger | None = None) -> int:
    """Restart every engine that should run and does not; returns the number of opened operations. Raises BackendUnavailable.

    `trigger` is the cause of the restarts; None: whatever the runtime's identity says now.
    Instances with a fault are corrected first: the instance of a newer incarnation than the registry knows, as after a restore of
    the database, would keep the valid one from starting. An engine whose volume takes too much disk space is stopped instead.
    The `background` processes carry out as many restarts at a time as they have threads. Any number of processes may resume
    engines at once: the registry is read before the runtime, and an engine that has moved since then is left alone.
    """
    trigger = trigger or _cause(is_known=hosts.is_known(backends.get().identity()))
    should_run = Engine.objects.filter(status=Status.RUNNING).only("incarnation", "incarnation_mark", "seq")
    wanted = [(specs.ref_of(engine), engine.seq) for engine in should_run]
    found = _list_by_engine()
    _note_if_possible(found)  # first: the row of a restart says whether the volume was gone
    _correct_all(found)
    running = {each.ref for instances in found.values() for each in instances if each.state == State.RUNNING}
    missing = [(ref.engine_id, seq) for ref, seq in wanted if ref not in running]
    return sum(lifecycle.resume(engine_id, seq, by=SYSTEM, trigger=trigger) is not None for engine_id, seq in missing)
