"""What must be true of a fleet once everything has settled: registry, runtime and log tell one story."""

from collections.abc import Iterable
from uuid import UUID

from django.core.management import call_command

from audit.models import AuditRow
from engines import backends, specs
from engines.backends.base import State
from engines.models import Engine, Kind, Operation, OperationState, Status
from engines.transitions import TRANSITIONS
from tests.reliability.runtimes import Docker, Subprocesses

SUBPROCESSES = Subprocesses()
RUNS = {Status.RUNNING: [State.RUNNING], Status.STOPPED: [State.EXITED], Status.SLEEPING: [State.EXITED], Status.DESTROYED: []}


def operation_ended(engine_id: UUID, kind: Kind) -> bool:
    return not Operation.objects.filter(engine_id=engine_id, kind=kind, finished_at=None).exists()


def check_settled(engine_id: UUID, kind: Kind, runtime: Subprocesses | Docker = SUBPROCESSES) -> None:
    """One operation of the kind, it succeeded, one final row; the right process runs and no other; the log replays."""
    operations = list(Operation.objects.filter(engine_id=engine_id, kind=kind))
    assert [operation.state for operation in operations] == [OperationState.SUCCEEDED], operations
    outcome = AuditRow.objects.filter(operation_id=operations[0].pk, to_status=TRANSITIONS[kind].after)
    assert [row.action for row in outcome] == [TRANSITIONS[kind].done]
    check_agrees([engine_id], runtime)


def check_agrees(engine_ids: Iterable[UUID], runtime: Subprocesses | Docker = SUBPROCESSES, *, removed: bool = False) -> None:
    """Registry, runtime and log agree on these engines, and nothing that runs or lies about belongs to anything else.

    `removed`: somebody has removed instances; an engine that does not run has none then until it starts again.
    """
    expected, living, ports = [], set(), set()
    instances = backends.get().list()
    for engine in Engine.objects.filter(pk__in=engine_ids):
        mine = [found for found in instances if found.ref.engine_id == engine.pk]
        expected_states = [RUNS[Status(engine.status)], *([[]] if removed and engine.status != Status.RUNNING else [])]
        assert [found.state for found in mine] in expected_states, (engine.user_id, engine.status, mine)
        assert [(found.ref, found.port) for found in mine] in ([], [(specs.ref_of(engine), engine.port)])
        if engine.status == Status.RUNNING:
            expected.append(engine.pk)
            ports.add((engine.pk, engine.port))
        living |= {engine.pk} if engine.destroyed_at is None else set()
    assert sorted(runtime.running()) == sorted(expected)
    assert runtime.published() == ports
    assert runtime.volumes() == living
    assert not Operation.objects.filter(finished_at=None).exists()
    call_command("audit_check", verbosity=0)
