"""The engines of a copied database, which belong to the original: in the copy, each becomes a tombstone. No backend is asked."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction

from audit.actions import Action
from audit.actors import Actor
from engines import operations
from engines.lifecycle import moves
from engines.lifecycle.checks import lock
from engines.lifecycle.outcomes import CLEARED, DESTROYED
from engines.lifecycle.settle import record_superseded
from engines.models import Status

_DISOWNED: Mapping[str, Any] = {**CLEARED, **DESTROYED, "may_run": False, "differs": "", "disowned": True}


@transaction.atomic
def disown(engine_id: UUID, *, by: Actor) -> None:
    """Make the engine a tombstone that nothing touches any more, and end its open operation. Raises EngineNotFound."""
    engine = lock(engine_id)
    current = operations.find_open(engine)
    if current is not None and operations.drop(current):
        record_superseded(engine, current, by=by, superseded_by="separate_copy")
    moves.move(engine, Status.DESTROYED, Action.ENGINE_DISOWNED, by=by, metadata={}, extra=_DISOWNED)
