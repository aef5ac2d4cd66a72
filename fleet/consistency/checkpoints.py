"""Checkpoints: the audit row of a check without disagreement, from which a later check can go on (`audit_check --since`)."""

from dataclasses import dataclass

from django.db import connection

from audit.actions import Action
from audit.models import AuditRow
from engines.models import Status


class NoCheckpoint(LookupError):
    """There is no such checkpoint, or the log does not have its rows any more. The text says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A number up to which all rows were there and checked, and the sum of the fleet's states at this number."""

    upto: int = 0
    fleet: str = ""


def find(number: int | None) -> Checkpoint:
    """The checkpoint that the audit row `number` remembers; the newest for None. Raises NoCheckpoint."""
    kept = AuditRow.objects.filter(action=Action.AUDIT_CHECK, product_id=None)
    row = (kept.filter(pk=number) if number is not None else kept).first()
    # The application's role could insert any number: a check has closed no row above its own.
    if row is None or not isinstance(upto := row.metadata.get("upto"), int) or not 0 <= upto < row.pk:
        raise NoCheckpoint("no audit row remembers such a check: run audit_check without --since")
    return Checkpoint(upto, str(row.metadata.get("fleet")))


def fleet_at(upto: int) -> str:
    """A sum of the states of all engines before the rows above `upto`, from the registry without the moves of these rows.

    Two checks compute the same sum for the same number, unless the registry was changed without a row. Engines that were
    destroyed by then do not count: their tombstones go in time.
    """
    with connection.cursor() as cursor:
        cursor.execute(_FLEET.replace("__UPTO__", f"{upto:d}"))
        return str(cursor.fetchone()[0])


_FLEET = f"""
SELECT coalesce(sum(hash_record_extended(ROW(e.id, coalesce(m.seq, e.seq), coalesce(m.from_status, e.status)), 0)), 0)
FROM engines_engine e
-- m: the first move of the engine above the number, and with it the state before
LEFT JOIN (
    SELECT DISTINCT ON (engine_id) engine_id, engine_seq - 1 AS seq, from_status FROM audit_log
    WHERE id > __UPTO__ AND to_status IS NOT NULL AND engine_seq > 0 ORDER BY engine_id, engine_seq
) m ON m.engine_id = e.id
WHERE coalesce(m.seq, e.seq) > 0 AND coalesce(m.from_status, e.status) <> '{Status.DESTROYED}'
"""
