"""An engine's lifetime by its audit rows, in order by (`engine_seq`, `id`).

The timeline adds the time between two rows, and the time in every state.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import QuerySet

from audit import badges
from audit.models import AuditRow
from common import keyset, wording
from engines.models import Engine, Operation

SIZE = 1000


@dataclass(frozen=True)
class Entry:
    """An audit row with times in milliseconds; a time is None without an earlier row to count from.

    `gap_ms` is the time from the end of the row before to the end of the row. `held_ms` is the time that the engine spent in
    `from_status`, for a row with a move.
    """

    row: AuditRow
    gap_ms: float | None
    held_ms: float | None

    @property
    def moves(self) -> bool:
        return self.row.from_status != self.row.to_status

    @property
    def badge(self) -> str:
        return badges.of(self.row.action)

    @property
    def started(self) -> str:
        return wording.moment(self.row.timestamp)

    @property
    def took(self) -> str:
        return wording.duration(self.row.duration_ms)

    @property
    def gap(self) -> str:
        return "" if self.gap_ms is None else f"+{wording.duration(self.gap_ms)}"

    @property
    def held(self) -> str:
        return "" if self.held_ms is None else wording.duration(self.held_ms)

    @property
    def facts(self) -> list[tuple[str, str]]:
        return wording.facts(self.row.metadata)


@dataclass(frozen=True)
class Step:
    """A step of an operation: when an attempt reached the step, and how long after the step before, or after the opening."""

    name: str
    attempt: int
    at: datetime
    after_ms: float

    @property
    def moment(self) -> str:
        return wording.moment(self.at)

    @property
    def after(self) -> str:
        return f"+{wording.duration(self.after_ms)}"


@dataclass(frozen=True)
class Timeline:
    """Up to SIZE rows, oldest first; `earlier` is the position of earlier rows, empty without earlier rows."""

    entries: list[Entry]
    earlier: str
    since: datetime | None
    """When the last move among `entries` ended; None without a move."""


def read(engine: Engine, before: str = "") -> Timeline:
    """The newest rows of the engine, or the rows before a position. Raises ValueError for an invalid position."""
    page = keyset.read(AuditRow.objects.filter(engine_id=engine.pk), ("engine_seq", "id"), SIZE, older=before)
    entries, since = _entries_of(page.rows[::-1])
    return Timeline(entries, page.older, since)


def of_operation(engine_id: UUID, operation_id: UUID) -> list[Entry]:
    """The rows of an operation, oldest first."""
    found: QuerySet[AuditRow] = AuditRow.objects.filter(engine_id=engine_id, operation_id=operation_id)
    return _entries_of(list(found.order_by("engine_seq", "id")[:SIZE]))[0]


def steps(operation: Operation) -> list[Step]:
    """The steps of an operation so far, oldest first."""
    told, previous = [], operation.created_at
    for step in operation.steps:
        at = datetime.fromisoformat(step["at"])
        told.append(Step(step["step"].replace("_", " "), step["attempt"], at, _between(previous, at) or 0.0))
        previous = at
    return told


def _entries_of(rows: list[AuditRow]) -> tuple[list[Entry], datetime | None]:
    """The rows with the times between them, and when the last move ended."""
    entries: list[Entry] = []
    previous = entered = None
    for row in rows:
        ended = row.timestamp + timedelta(milliseconds=row.duration_ms or 0)
        moved = row.to_status is not None and row.from_status != row.to_status
        entries.append(Entry(row, _between(previous, ended), _between(entered, ended) if moved else None))
        previous = ended
        entered = ended if moved else entered
    return entries, entered


def _between(earlier: datetime | None, later: datetime) -> float | None:
    return None if earlier is None else max(0.0, (later - earlier) / timedelta(milliseconds=1))
