"""Audit rows of this floor. A call with a named admin key is `admin` like any other; its row says which key it was."""

from collections.abc import Mapping
from typing import Any

import structlog

from audit import trail
from audit.actions import Action
from audit.actors import ADMIN, Actor
from policy.models import Product

ADMIN_KEY = "admin_key"


def sign(name: str | None) -> None:
    """Say which admin key the present request came with; None: the one of the environment. In its log lines as well."""
    if name is None:
        structlog.contextvars.unbind_contextvars(ADMIN_KEY)
    else:
        structlog.contextvars.bind_contextvars(**{ADMIN_KEY: name})


def record(action: Action, product: Product | None = None, *, by: Actor, metadata: Mapping[str, Any]) -> None:
    """Write one row about the product, or about none."""
    subject = trail.Subject(product_id=product.pk, product_slug=product.slug) if product else trail.NOTHING
    trail.record(action, subject, by=by, metadata=signed(metadata, by=by))


def signed(metadata: Mapping[str, Any], *, by: Actor) -> Mapping[str, Any]:
    """The metadata with the name of the admin key that the request came with, where it has one."""
    name = structlog.contextvars.get_contextvars().get(ADMIN_KEY) if by == ADMIN else None
    return {**metadata, ADMIN_KEY: name} if name else metadata
