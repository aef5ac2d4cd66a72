"""Who did it: the `actor` of an audit row."""

from typing import NewType

Actor = NewType("Actor", str)

SYSTEM = Actor("system")  # our own loops
ADMIN = Actor("admin")  # a call with the admin key
RESERVED = frozenset({SYSTEM, ADMIN})  # no product may take these as its slug


def product(slug: str) -> Actor:
    """A product, calling the API with its platform key."""
    return Actor(slug)


def staff(username: str) -> Actor:
    """A member of staff, acting in the admin site."""
    return Actor(f"admin:{username}")
