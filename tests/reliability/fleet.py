"""What must be true of a fleet once everything has settled: registry, runtime and log tell one story."""

from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from django.core.management import call_command

from audit.models import AuditRow
from engines import backends
from engines.backends.base import State
from engines.models import Engine, Kind, Operation, OperationState, Status
from engines.transitions import TRANSITIONS
from tests import servers

RUNS = {Status.RUNNING: [State.RUNNING], Status.STOPPED: [State.EXITED], Status.SLEEPING: [State.EXITED], Status.DESTROYED: []}


def processes() -> list[UUID]:
    """The engine of every engine process of this test run, as the operating system has them; one entry per process."""
    root = str(servers.HOME / "engines").encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ, command = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"engines.demo" in command and root in environ:
            data = next(part for part in environ.split(b"\0") if part.startswith(b"SQLITE_DB_PATH="))
            found.append(UUID(Path(data.decode().partition("=")[2]).parent.parent.name))
    return found


def operation_ended(engine_id: UUID, kind: Kind) -> bool:
    return not Operation.objects.filter(engine_id=engine_id, kind=kind, finished_at=None).exists()


def check_settled(engine_id: UUID, kind: Kind) -> None:
    """One operation of the kind, it succeeded, one final row; the right process runs and no other; the log replays."""
    operations = list(Operation.objects.filter(engine_id=engine_id, kind=kind))
    assert [operation.state for operation in operations] == [OperationState.SUCCEEDED], operations
    outcome = AuditRow.objects.filter(operation_id=operations[0].pk, to_status=TRANSITIONS[kind].after)
    assert [row.action for row in outcome] == [TRANSITIONS[kind].done]
    check_agrees([engine_id])


def check_agrees(engine_ids: Iterable[UUID]) -> None:
    """Registry, runtime and log agree on these engines, and no engine process belongs to anything else."""
    expected = []
    for engine in Engine.objects.filter(pk__in=engine_ids):
        instances = [found for found in backends.get().list() if found.ref.engine_id == engine.pk]
        assert [found.state for found in instances] == RUNS[Status(engine.status)], (engine.status, instances)
        assert [found.ref.incarnation for found in instances] in ([], [engine.incarnation])
        expected += [engine.pk] * (engine.status == Status.RUNNING)
    assert sorted(processes()) == sorted(expected)
    assert not Operation.objects.filter(finished_at=None).exists()
    call_command("audit_check", verbosity=0)
