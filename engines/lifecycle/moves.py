"""A move of an engine from state to state and its audit row, in a single statement."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from engines.lifecycle.outcomes import CLEARED, NO_PENDING, After
from engines.models import Engine, Status

# Ends the UPDATE: the columns of the moved row that its audit row repeats. `e_from` is a parameter, because the row has the new
# status already.
SUBJECT = (
    " RETURNING e.product_id, (SELECT slug FROM policy_product p WHERE p.id = e.product_id) AS product_slug,"
    " e.user_id, e.id AS engine_id, %(e_from)s::text AS from_status, e.status AS to_status, e.seq AS engine_seq"
)

# The columns that a move may change besides `status` and `seq`.
_COLUMNS = frozenset(CLEARED.keys() | NO_PENDING.keys()) | {
    "image_digest",
    "next_probe_at",
    "provisioned_at",
    "destroyed_at",
    "restart_attempts",
    "key_hash",
    "key_ciphertext",
    "incarnation",
    "incarnation_mark",
    "boot_timed_out",
    "differs",
    "env_version",
    "memory_mb",
    "may_run",
    "proves",
    "disowned",
}


def move(
    engine: Engine,
    to: Status,
    action: Action,
    *,
    by: Actor,
    metadata: Mapping[str, Any],
    extra: Mapping[str, Any],
    operation_id: UUID | None = None,
    started: datetime | None = None,
) -> None:
    """Change the state of a locked engine and write its audit row. Raises trail.NotRecorded if the engine has moved meanwhile.

    Both are written by a single statement: neither a move without a row nor a row without a move can be committed.
    """
    assert extra.keys() <= _COLUMNS, extra.keys() - _COLUMNS
    # An After counts from the start of the transaction, by the database's clock.
    sets = [
        f"{name} = now() + make_interval(secs => %(e_{name})s)" if isinstance(value, After) else f"{name} = %(e_{name})s"
        for name, value in extra.items()
    ]
    params = {f"e_{name}": value.seconds if isinstance(value, After) else value for name, value in extra.items()}
    params |= {"e_id": engine.pk, "e_from": engine.status, "e_to": to, "e_seq": engine.seq}
    # The WHERE compares `status` and `seq` with the values that were read: a caller without the lock changes no row.
    row = trail.record_move(
        f"UPDATE engines_engine AS e SET {', '.join(['status = %(e_to)s', 'seq = seq + 1', *sets])}"
        " WHERE id = %(e_id)s AND status = %(e_from)s AND seq = %(e_seq)s" + SUBJECT,
        params,
        action,
        by=by,
        metadata=metadata,
        operation_id=operation_id,
        started=started,
    )
    if row is None:
        raise trail.NotRecorded(f"{action} of engine {engine.pk}: the engine moved although it was locked")


def subject(engine: Engine) -> trail.Subject:
    """The engine's columns of an audit row that records no move."""
    return trail.Subject(
        product_id=engine.product_id,
        product_slug=engine.product.slug,
        user_id=engine.user_id,
        engine_id=engine.pk,
        engine_seq=engine.seq,
    )
