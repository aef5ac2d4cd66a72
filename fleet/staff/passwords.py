"""Passwords checked: with brakes before any hash, few hashes at a time, and a row for each failure."""

from django.contrib.auth import authenticate
from django.contrib.auth.models import User
from django.http import HttpRequest

from fleet.staff import brakes, hashers, record
from fleet.staff.brakes import Paused


def check(request: HttpRequest, username: str, password: str) -> User | None:
    """The active member of staff with the name and the password, or None. Each failure is counted and recorded.

    The success ends no pause, because a second factor may still be missing: `brakes.passed` is for whoever has seen all.
    Raises Paused, without a hash, while the name or the address is paused, or too many hashes are under way.
    """
    try:
        brakes.check(username)
        with hashers.turn():
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
    return found if isinstance(found, User) and found.is_staff else None
