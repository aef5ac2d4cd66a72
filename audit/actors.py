"""The `actor` of an audit row: the product, operator or loop behind the action."""

from typing import Any, NewType

Actor = NewType("Actor", str)

SYSTEM = Actor("system")  # the fleet's own loops and jobs
ADMIN = Actor("admin")  # a call with the admin key
ANONYMOUS = Actor("anonymous")  # somebody at the log-in page who did not prove to be the user whose name they gave
FORM = "^([a-z0-9][a-z0-9-]{1,62}|admin:[^[:cntrl:]]{1,150})$"
"""What every actor matches, as PostgreSQL reads it. The trigger of `audit_log` refuses a row without this form."""

RESERVED = frozenset({SYSTEM, ADMIN, ANONYMOUS})  # refused as slugs of products, whose actor is their slug


def product(slug: str) -> Actor:
    """A product calling the API with its platform key."""
    return Actor(slug)


def staff(username: str) -> Actor:
    """A member of staff acting in the admin site."""
    return Actor(f"admin:{username}")


def of_user(user: Any) -> Actor:
    """The same, by the user of Django."""
    return staff(user.get_username())
