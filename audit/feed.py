"""The log in the order of commits: a reader who goes on from a cursor gets every row once, however long its transaction took.

    page = feed.read(AuditRow.objects.all(), feed.START, 100)
    more = feed.read(AuditRow.objects.all(), page.reached, 100)

A row gets its number and its times when it is written, but appears when its transaction commits. Sorted by number or time, a row
may therefore appear before rows that were read already. Here rows are sorted by (`stretch`, `txid`, `id`) and read up to the
*frontier*: the id of the oldest transaction that is still open (`pg_snapshot_xmin`). All rows before the frontier are there.

Ids of transactions grow only within a cluster and one of its timelines: both name a *stretch* of the log. The first row after a
dump was brought into another cluster, or after a promotion, begins a new stretch (migration 0005). A copy of a cluster's files
that is started without a recovery keeps cluster and timeline: its ids may repeat, and a cursor does not notice.

Source of the method: https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
"""

import re
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import BooleanField, QuerySet
from django.db.models.expressions import BaseExpression, RawSQL

from common import busy_thread, compute_permit
from common.settings import settings
from common.shares import LentPlaces

SCAN = 10_000
"""Rows that a read looks at, at most: a filter that matches nothing costs no more than a page, and the reader still gets on."""
POLL_S = 0.25
LONGEST_WAIT_S = 30
START, NOW = "start", "now"
"""Positions that are no place in the log: before the first row, and at the frontier."""

_KEY = tuple(RawSQL(f"audit_log.{name}", ()) for name in ("stretch", "txid", "id"))  # noqa: S611 (names of ours)
_places = LentPlaces(max(1, settings.ENV.waiters // 4))
_POSITION = re.compile(r"(\d{1,5})\.(\d{1,19})\.(\d{1,10})\.(\d{1,20})\.(\d{1,19})", re.ASCII)


class Place(NamedTuple):
    """A place between two rows: after the row `id` of the transaction `txid` in a stretch."""

    stretch: int
    txid: int
    id: int


class Origin(NamedTuple):
    """Whose transactions a stretch has: a cluster's system identifier, and its timeline."""

    system: int
    timeline: int


@dataclass(frozen=True)
class Frontier:
    """The oldest open transaction, here and now, and the origins of the stretches by number."""

    txid: int
    here: Origin
    known: tuple[Origin, ...]

    @property
    def stretch(self) -> int:
        """The stretch of a row that is written now; the first row begins it."""
        return len(self.known) - 1 if self.known[-1] == self.here else len(self.known)

    @property
    def place(self) -> Place:
        return Place(self.stretch, self.txid, 0)

    def origin(self, stretch: int) -> Origin:
        return self.known[stretch] if stretch < len(self.known) else self.here


@dataclass(frozen=True)
class Page:
    """Rows, oldest commit first, and the position from which to go on: later rows appear beyond it only."""

    rows: list[Any]
    reached: str


def read(
    found: "QuerySet[Any]", position: str, size: int, *, shown: BaseExpression, matching: "QuerySet[Any] | None" = None
) -> Page:
    """At most `size` rows of `found` beyond the position, of the next SCAN; where `matching` is given, only its rows.

    A row is the value of the expression `shown`. `matching` is `found` with further conditions. A page without rows does not
    mean that there are no more: go on from the position that was reached. Raises ValueError for an invalid position.
    """
    frontier = look(found.db)
    after, until = _parse(position, frontier), frontier.place
    if matching is not None:
        until = _last_of(found, after, until, SCAN)
    wanted = _between(found if matching is None else matching, after, until).order_by(*_KEY)
    keys = dict(zip(("_stretch", "_txid"), _KEY[:2], strict=True))
    rows = list(wanted.annotate(shown=shown, **keys).values_list("shown", "_stretch", "_txid", "id")[: size + 1])
    reached = Place(*map(int, rows[size - 1][1:])) if len(rows) > size else max(after, until)
    return Page([row[0] for row in rows[:size]], _encode(reached, frontier))


def wait(read: Callable[[str], Page], position: str, seconds: float, owner: Hashable) -> Page:
    """What `read` finds beyond the position; while that is nothing, look again every POLL_S, for up to `seconds`.

    Without a place to wait, and when the place is called back for another owner, the answer is a page without rows. Gives the
    database connection back between two looks; must not be called inside a transaction. Raises as `read` does.
    """
    page, deadline = read(position), time.monotonic() + seconds
    if page.rows or seconds <= 0 or not (place := _places.take(owner)):
        return page
    try:
        while not page.rows and not place.is_called_back and (left := deadline - time.monotonic()) > 0:
            busy_thread.stand_aside()
            compute_permit.release()
            connections[DEFAULT_DB_ALIAS].close()
            time.sleep(min(POLL_S, left))  # nobody announces a commit
            page = read(page.reached)
    finally:
        place.give_back()
    return page


def look(using: str) -> Frontier:
    """The frontier, as of this call."""
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT pg_snapshot_xmin(pg_current_snapshot())::text, system, timeline,"
            " (SELECT array_agg(ARRAY[s.system, s.timeline] ORDER BY n) FROM audit_stretch s) FROM audit_here()"
        )
        txid, system, timeline, known = cursor.fetchone()
    return Frontier(int(txid), Origin(system, timeline), tuple(Origin(*origin) for origin in known))


@dataclass(frozen=True)
class Span:
    """The rows beyond `after`, up to `until` and with it; `reached` is the position of `until`."""

    after: Place
    until: Place
    reached: str


def next_span(found: "QuerySet[Any]", position: str, most: int) -> Span:
    """The next rows of `found` beyond the position, at most `most`; the span is empty once it reaches the frontier.

    Raises ValueError for an invalid position.
    """
    frontier = look(found.db)
    after = _parse(position, frontier)
    until = _last_of(found, after, frontier.place, most)
    return Span(after, until, _encode(max(after, until), frontier))


def _last_of(found: "QuerySet[Any]", after: Place, until: Place, most: int) -> Place:
    """The place of row number `most` beyond `after`, or `until` if that comes first."""
    last = _between(found, after, until).order_by(*_KEY).values_list(*_KEY)[most - 1 : most]
    return next((Place(*map(int, row)) for row in last), until)


def _between(found: "QuerySet[Any]", after: Place, until: Place) -> "QuerySet[Any]":
    """The rows beyond `after`, up to `until` and with the row of that number."""
    row = "(audit_log.stretch, audit_log.txid, audit_log.id)"
    bounds = [(f"{row} > (%s::smallint, %s::xid8, %s)", after), (f"{row} <= (%s::smallint, %s::xid8, %s)", until)]
    for condition, (stretch, txid, number) in bounds:
        found = found.filter(RawSQL(condition, (stretch, str(txid), number), output_field=BooleanField()))  # noqa: S611 (our SQL)
    return found


def _parse(position: str, frontier: Frontier) -> Place:
    """The place of the position, here. Raises ValueError.

    A position of another cluster, or of a timeline that was left, is a place in a stretch that is not ours. The stretches before
    are the same: the reader goes on with the first row of our stretch of that number, or of the present stretch.
    """
    if position == START:
        return Place(0, 0, 0)
    if position == NOW:
        return frontier.place
    parts = _POSITION.fullmatch(position)
    if not parts:
        raise ValueError("not a position")
    stretch, system, timeline, txid, number = map(int, parts.groups())
    if stretch <= frontier.stretch and frontier.origin(stretch) == (system, timeline):
        return Place(stretch, txid, number)
    return Place(min(stretch, frontier.stretch), 0, 0)


def _encode(place: Place, frontier: Frontier) -> str:
    return ".".join(map(str, (place.stretch, *frontier.origin(place.stretch), place.txid, place.id)))
