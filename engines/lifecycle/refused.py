"""The rows of refusals: written outside the transaction that refused, which would take them along when it is rolled back."""

from collections.abc import Iterator
from contextlib import contextmanager

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from engines.errors import CapacityExhausted
from engines.models import Kind
from policy import refusals
from policy.errors import Denied


@contextmanager
def recorded(kind: Kind, about: trail.Subject, *, by: Actor, denied: Action) -> Iterator[None]:
    """A refusal by the host's room or by the product's policy inside the block gets its row; `denied` is the policy's action."""
    try:
        yield
    except CapacityExhausted as full:
        refusals.record(Action.CAPACITY_EXHAUSTED, about, by=by, metadata={"verb": kind.value, **full.metadata()})
        raise
    except Denied as refusal:
        verb = {"verb": kind.value} if denied == Action.START_DENIED else {}
        refusals.record(denied, about, by=by, metadata={**verb, **refusal.metadata()})
        raise
