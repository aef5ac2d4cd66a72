"""Replay the audit log, compare the result with the registry, and report every subject of which the two disagree.

The check sifts, and then tells:

1. Month by month, PostgreSQL looks at each row by itself, and compares the rows of each day with the keeper's sums (`months`).
2. One statement adds up the moves and outcomes of each engine, and finds the engines that may disagree (`screen`).
3. For the engines found, a few hundred at a time, and for products and the fleet, further statements give the sentences.

So millions of rows stay in the database, and only sentences are fetched. No statement needs a cursor, with which PostgreSQL would
not use several processors.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from django.db import connection, transaction

from audit import sums
from common import statements
from fleet.consistency import engines, months, products, rows, screen
from fleet.consistency.checkpoints import Checkpoint, fleet_at
from fleet.consistency.months import Day, Month
from fleet.consistency.subjects import SHOWN, Disagreement

_CHUNK = 100  # engines told of at a time

Report = Callable[[Disagreement], object]
Progress = Callable[[str], object]


@dataclass
class Checked:
    """Numbers of compared engines and audit rows, of disagreeing engines, and of other subjects that disagree.

    `unproven` counts the rows that are in no sum. `is_whole` is false when the check has stopped at its limit. `checkpoint` is
    where a later check can go on, if nothing disagrees.
    """

    engines: int = 0
    rows: int = 0
    disagreeing: int = 0
    others: int = 0
    unproven: int = field(default=0, compare=False)
    is_whole: bool = field(default=True, compare=False)
    checkpoint: Checkpoint | None = field(default=None, compare=False)

    @property
    def agrees(self) -> bool:
        return not (self.disagreeing or self.others)


def check(
    report: Report, *, limit: int | None = None, since: Checkpoint | None = None, progress: Progress = lambda text: None
) -> Checked:
    """Compare log and registry in a snapshot; call `report` for each disagreeing subject, and `progress` before each part.

    Stops after `limit` subjects. With `since`, looks only at what has been written since: months with newer rows, engines of
    newer rows, and all products. A fleet at work causes no false alarm, because all queries read a single snapshot. Engines are
    not delayed; only retention waits until the check has ended.
    """
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # Lock before the first query takes the snapshot: the lock keeps retention from dropping a month. Rows of a month dropped
        # later would be missing, although the month is still in the snapshot's window.
        cursor.execute("LOCK TABLE audit_log IN ACCESS SHARE MODE")
        statements.unlimited()  # a large log takes minutes, and the reader of the report may stop in between
        cursor.execute("SET LOCAL work_mem = '128MB'")  # sums per engine stay in memory
        cursor.execute("SET LOCAL jit = off")  # would compile the long conditions anew for each month and process
        run = _Run(report, limit, since, progress)
        checked = run.checked
        checked.is_whole = all(step() for step in (run.look_at_months, run.look_at_engines, run.look_at_others))
        if checked.agrees:
            checked.checkpoint = Checkpoint(run.closed.upto, fleet_at(run.closed.upto))
    return checked


class _Run:
    """One check: what has been told, and what is still to be told. Each step returns false once the limit is reached."""

    def __init__(self, report: Report, limit: int | None, since: Checkpoint | None, progress: Progress) -> None:
        self.checked = Checked(engines=_scalar("SELECT count(*) FROM engines_engine"))
        self.report, self.limit, self.since, self.progress = report, limit, since, progress
        self.closed, self.first_written = sums.read_closed(), rows.find_first_written()
        self.told: set[UUID] = set()
        self.is_any_other_bad = False

    def look_at_months(self) -> bool:
        found = months.list_months(self.since.upto if self.since else 0)
        for number, month in enumerate(found, 1):
            self.progress(f"month {number} of {len(found)}, {month}; {self.checked.rows} rows so far")
            days = months.read(month, self.closed, self.first_written)
            self.checked.rows += sum(day.rows for day in days)
            if not self._compare(month, days) or (any(day.bad for day in days) and not self._tell_of_bad(month)):
                return False
        return True

    def _compare(self, month: Month, days: list[Day]) -> bool:
        """Compare the days of a month with their sums."""
        if not (month.is_kept and self.closed.is_comparable):
            self.checked.unproven += sum(day.rows for day in days)
            return True
        self.checked.unproven += sum(day.rows - day.closed for day in days)
        return self._tell(Disagreement(None, None, None, 1, [str(day)], f"{day.day} ({month})") for day in days if not day.agrees)

    def _tell_of_bad(self, month: Month) -> bool:
        pairs = months.find_bad(month, self.first_written)
        self.is_any_other_bad |= any(engine_id is None for engine_id, _ in pairs)
        return self._tell_of_engines(engine_id for pair in pairs for engine_id in pair if engine_id)

    def look_at_engines(self) -> bool:
        self.progress(f"the moves and operations of {self.checked.engines} engines")
        return self._tell_of_engines(self._suspects())

    def _suspects(self) -> list[UUID]:
        if self.since and self.since.fleet == fleet_at(self.since.upto):
            touched = _column(engines.TOUCHED.format(upto=self.since.upto))
            if len(touched) <= self.checked.engines // 10:
                return touched
        return [*_column(screen.engines()), *_column(screen.NAMED)]

    def _tell_of_engines(self, ids: Iterable[UUID]) -> bool:
        """Tell of the engines that were not told of, and of the engines whose operations their rows name."""
        waiting = self._untold(ids)
        while waiting:
            chunk, waiting = waiting[:_CHUNK], waiting[_CHUNK:]
            if not self._tell(_read(self._of_engines(chunk))):
                return False
            waiting += self._untold(_column(_fill(engines.NAMED, chunk)))
        return True

    def _untold(self, ids: Iterable[UUID]) -> list[UUID]:
        new = [engine_id for engine_id in dict.fromkeys(ids) if engine_id not in self.told]
        self.told.update(new)
        return new

    def look_at_others(self) -> bool:
        self.progress("products, keys and overrides")
        return self._tell(_read(self._of_others()))

    def _of_engines(self, ids: list[UUID]) -> str:
        of_them = rows.tell(f"r.engine_id = ANY({engines.ENGINES})", self.first_written)
        return _fill(_group(engines.MOVES, engines.OPERATIONS, of_them), ids)

    def _of_others(self) -> str:
        of_rows = [rows.tell("r.engine_id IS NULL", self.first_written)] if self.is_any_other_bad else []
        return _group(products.PRODUCTS, *products.THINGS, *of_rows)

    def _tell(self, disagreements: Iterable[Disagreement]) -> bool:
        for disagreement in disagreements:
            if self.limit is not None and self.checked.disagreeing + self.checked.others >= self.limit:
                return False
            self.report(disagreement)
            if disagreement.engine_id is None:
                self.checked.others += 1
            else:
                self.checked.disagreeing += 1
        return True


def _fill(statement: str, ids: list[UUID]) -> str:
    """The statement with the ids in place of `__ENGINES__`."""
    return statement.replace(engines.ENGINES, f"'{{{','.join(map(str, ids))}}}'::uuid[]")


def _group(*sentences: str) -> str:
    """SQL: a result row per subject: the number of sentences, and the first sentences in the order of the moves.

    A subject is an engine, or a product for rows without an engine, or the fleet for rows without a product.
    """
    return f"""
        SELECT told.engine_id, p.slug, e.user_id, count(*),
            (array_agg(text ORDER BY place NULLS LAST, text))[:{SHOWN}]
        FROM ({" UNION ALL ".join(sentences)}) told
        LEFT JOIN engines_engine e ON e.id = told.engine_id
        LEFT JOIN policy_product p ON p.id = coalesce(e.product_id, told.product_id)
        GROUP BY told.engine_id, told.product_id, p.slug, e.user_id ORDER BY told.engine_id, told.product_id
    """


def _read(statement: str) -> Iterator[Disagreement]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        yield from (Disagreement(*row) for row in cursor.fetchall())


def _column(statement: str) -> list[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return [value for (value,) in cursor.fetchall()]


def _scalar(statement: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return int(cursor.fetchone()[0])
