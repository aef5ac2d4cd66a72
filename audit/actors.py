"""The `actor` of an audit row: the product, operator or loop behind the action."""

from typing import NewType

Actor = NewType("Actor", str)

SYSTEM = Actor("system")  # the fleet's own loops and jobs
ADMIN = Actor("admin")  # a call with the admin key
RESERVED = frozenset({SYSTEM, ADMIN})  # refused as slugs of products, whose actor is their slug


def product(slug: str) -> Actor:
    """A product calling the API with its platform key."""
    return Actor(slug)


def staff(username: str) -> Actor:
    """A member of staff acting in the admin site."""
    return Actor(f"admin:{username}")
