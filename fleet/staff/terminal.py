"""How the commands about users ask for a password and word what is wrong."""

import getpass

from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError


def ask_password(user: User) -> str:
    """A new password for the user, typed twice. Raises CommandError if the two differ, or nobody answers."""
    try:
        first, second = (getpass.getpass(f"Password{again} for {user.username}: ") for again in ("", " (again)"))
    except (EOFError, KeyboardInterrupt) as error:
        raise CommandError("Nothing is changed.") from error
    if first != second:
        raise CommandError("The two passwords differ. Nothing is changed.")
    return first


def check_password(password: str, user: User) -> None:
    """Raise CommandError for a password that the rules refuse."""
    try:
        validate_password(password, user)
    except ValidationError as refused:
        raise CommandError(sentences(refused)) from refused


def sentences(refused: ValidationError) -> str:
    """What is wrong, in one line."""
    return " ".join(refused.messages)
