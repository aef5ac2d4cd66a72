"""Audit rows of this floor. A call with a named admin key has the actor `admin` like any other; its row says which key it was."""

from collections.abc import Mapping
from typing import Any

from audit import trail
from audit.actions import Action
from audit.actors import ADMIN, Actor
from common import context
from policy.models import Product

ADMIN_KEY = "admin_key"


def record(action: Action, product: Product | None = None, *, by: Actor, metadata: Mapping[str, Any]) -> None:
    """Write one row about the product, or about none."""
    subject = trail.Subject(product_id=product.pk, product_slug=product.slug) if product else trail.NOTHING
    trail.record(action, subject, by=by, metadata=signed(metadata, by=by))


def signed(metadata: Mapping[str, Any], *, by: Actor) -> Mapping[str, Any]:
    """The metadata with the name of the admin key that the request came with, where the key has a name."""
    name = context.credential.get() if by == ADMIN else None
    return {**metadata, ADMIN_KEY: name} if name else metadata
