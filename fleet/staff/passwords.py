"""Passwords checked: with brakes before any hash, few hashes at a time, and a row for each failure; and the rule for new ones."""

from typing import Any

from django.contrib.auth import authenticate
from django.contrib.auth.hashers import get_hasher, identify_hasher, make_password
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from fleet.staff import brakes, hashers, record
from fleet.staff.brakes import Paused

DIFFERENT = 5  # characters that a password has at least, not counting those that do not show


def check(request: HttpRequest, username: str, password: str) -> User | None:
    """The active member of staff with the name and the password, or None. Each failure is counted and recorded.

    The success ends no pause, because a second factor may still be missing: `brakes.passed` is for whoever has seen all.
    Raises Paused, without a hash, while the name or the address is paused, or too many hashes are under way.
    """
    try:
        brakes.check(username)
        with hashers.turn() if request.user.is_authenticated else hashers.turn_of_stranger():
            brakes.check(username)  # once more: others may have failed while this thread waited for its turn
            found = authenticate(request, username=username, password=password)
            if found is None:
                brakes.failed(username)  # within the turn: the next to hash sees this failure
    except Paused:
        record.login_failed("paused", username)
        raise
    if found is None:
        record.login_failed("wrong_password", username)
    elif not found.is_staff:
        brakes.failed(username)
        record.login_failed("not_staff", username)
    if not isinstance(found, User) or not found.is_staff:
        return None
    _renew_hash(found, password)
    return found


def _renew_hash(user: User, password: str) -> None:
    """Hash the password anew where today's hashes are stronger, unless somebody has set another password meanwhile."""
    hasher: Any = identify_hasher(user.password)
    if hasher.algorithm != get_hasher().algorithm or hasher.is_weak(user.password):
        encoded = make_password(password)
        if User.objects.filter(pk=user.pk, password=user.password).update(password=encoded):
            user.password = encoded


class VariedPassword:
    """Django's validator of new passwords: refuses twelve times the same character, or characters that do not show."""

    def validate(self, password: str, user: Any = None) -> None:
        """Raise ValidationError for a password with too few different characters."""
        if len({each for each in password if each.isprintable() and not each.isspace()}) < DIFFERENT:
            raise ValidationError(self.get_help_text())

    def get_help_text(self) -> str:
        return f"Your password must contain at least {DIFFERENT} different characters that show."
