"""Replay the audit log, compare the result with the registry, and report every subject of which the two disagree.

The comparison is a single SQL statement: millions of rows stay in the database, and only the disagreements are fetched.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

from django.db import connection, transaction

from common import statements
from common.characters import marked
from fleet.consistency import engines, products, rows

SHOWN = 5  # disagreements reported in words per subject
_CHUNK = 500  # subjects fetched at a time


def _disagreements() -> str:
    """SQL: a result row per subject: the number of sentences, and the first sentences in the order of the moves.

    A subject is an engine, or a product for rows without an engine, or the fleet for rows without a product.
    """
    sentences = " UNION ALL ".join((engines.MOVES, rows.compare(), engines.OPERATIONS, products.PRODUCTS, *products.THINGS))
    return f"""
        SELECT told.engine_id, p.slug, e.user_id, count(*),
            (array_agg(text ORDER BY place NULLS LAST, text))[:{SHOWN}]
        FROM ({sentences}) told
        LEFT JOIN engines_engine e ON e.id = told.engine_id
        LEFT JOIN policy_product p ON p.id = coalesce(e.product_id, told.product_id)
        GROUP BY told.engine_id, told.product_id, p.slug, e.user_id ORDER BY told.engine_id, told.product_id
    """


@dataclass(frozen=True)
class Disagreement:
    """A subject with the first SHOWN of its `count` sentences: an engine, else a product, else the fleet."""

    engine_id: UUID | None
    product_slug: str | None
    user_id: str | None
    count: int
    sentences: list[str]

    def __str__(self) -> str:
        """The subject and the sentences in a single line."""
        more = f"; and {self.count - len(self.sentences)} more" if self.count > len(self.sentences) else ""
        return f"{self._subject()}: {'; '.join(self.sentences)}{more}"

    def _subject(self) -> str:
        if self.engine_id is None:
            return f"product {self.product_slug}" if self.product_slug else "the fleet"
        known = f" (product {self.product_slug}, user {marked(self.user_id or '')})" if self.product_slug else ""
        return f"engine {self.engine_id}{known}"


@dataclass(frozen=True)
class Checked:
    """Numbers of compared engines and audit rows, of disagreeing engines, and of other subjects that disagree."""

    engines: int
    rows: int
    disagreeing: int
    others: int = 0


def check(report: Callable[[Disagreement], object]) -> Checked:
    """Compare log and registry in a snapshot; call `report` for every disagreeing subject, in order of engine ids.

    A fleet at work causes no false alarm, because all queries read a single snapshot. Engines are not delayed; only retention
    waits until the check has ended.
    """
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        # Lock before the first query takes the snapshot: the lock keeps retention from dropping a month. Rows of a month dropped
        # later would be missing, although the month is still in the snapshot's window.
        cursor.execute("LOCK TABLE audit_log IN ACCESS SHARE MODE")
        statements.unlimited()  # the replay of a large log takes minutes, and the reader of the report may stop in between
        cursor.execute("SET LOCAL work_mem = '128MB'")  # the replay sorts and joins the whole log
        cursor.execute("SELECT (SELECT count(*) FROM engines_engine), (SELECT count(*) FROM audit_log)")
        engine_count, row_count = cursor.fetchone()
        found = [0, 0]
        for disagreement in _read():
            report(disagreement)
            found[disagreement.engine_id is None] += 1
    return Checked(engine_count, row_count, *found)


def _read() -> Iterator[Disagreement]:
    with connection.chunked_cursor() as cursor:
        cursor.execute(_disagreements())
        while found := cursor.fetchmany(_CHUNK):
            yield from (Disagreement(*row) for row in found)
