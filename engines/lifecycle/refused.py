"""Writes audit rows of refusals, outside the refused transaction: its rollback would remove the rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from engines.errors import CapacityExhausted
from engines.models import Kind
from policy import refusals
from policy.errors import Denied


@contextmanager
def recorded(kind: Kind, about: Callable[[], trail.Subject], *, by: Actor, denied: Action) -> Iterator[None]:
    """Write the audit row of a refusal raised inside the block.

    The action is `capacity_exhausted` for a refusal by the host's room, and `denied` for a refusal by the product's policy.
    `about` is called for a refusal only: the engine's product may have to be read for it.
    """
    try:
        yield
    except CapacityExhausted as full:
        refusals.record(Action.CAPACITY_EXHAUSTED, about(), by=by, metadata={"verb": kind.value, **full.metadata()})
        raise
    except Denied as refusal:
        verb = {"verb": kind.value} if denied == Action.START_DENIED else {}
        refusals.record(denied, about(), by=by, metadata={**verb, **refusal.metadata()})
        raise
