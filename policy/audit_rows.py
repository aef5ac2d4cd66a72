"""Audit rows of the policy app. All calls with an admin key have the actor `admin`; the metadata names the key used."""

from collections.abc import Mapping
from typing import Any

from audit import trail
from audit.actions import Action
from audit.actors import ADMIN, Actor
from common import context
from policy.models import Product

ADMIN_KEY = "admin_key"


def record(action: Action, product: Product | None = None, *, by: Actor, metadata: Mapping[str, Any]) -> None:
    """Write one audit row, with the product as its subject if given."""
    subject = trail.Subject(product_id=product.pk, product_slug=product.slug) if product else trail.NOTHING
    trail.record(action, subject, by=by, metadata=signed(metadata, by=by))


def signed(metadata: Mapping[str, Any], *, by: Actor) -> Mapping[str, Any]:
    """Return the metadata plus the name of the request's admin key, if the actor is `admin` and the key has a name."""
    name = context.current().key_name if by == ADMIN else None
    return {**metadata, ADMIN_KEY: name} if name else metadata
