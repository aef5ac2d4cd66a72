"""Who may change which user, and users made and changed outside the admin's forms. Every change leaves its audit row.

A superuser may change everything but names. Others with the permission `auth.change_user` may change the names for people, the
address of e-mail and whether the account is active, and only of users who have no permission that they lack themselves: nobody
grants what they do not have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib.auth.models import Permission, User
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection, transaction
from django.db.models import Q

from audit.actors import Actor
from common import characters
from fleet.staff import record
from fleet.staff.record import Holder

CHANGE = "auth.change_user"
FLAGS_OF_SUPERUSER = ("is_active", "is_staff", "is_superuser")
FOR_SUPERUSERS = ("is_staff", "is_superuser", "groups", "user_permissions")
"""Fields of a user that only superusers change."""


@contextmanager
def recorded(holder: Holder, *, by: Actor, cause: str = "") -> Iterator[None]:
    """Record what the block changes of a user or a group, in one transaction with the block."""
    with transaction.atomic():
        before = record.snapshot(holder)
        yield
        record.change(holder, before, by=by, cause=cause)


def check_actor(actor: Any) -> None:
    """Raise PermissionDenied if the actor has lost a flag since the request began, such as while it waited for a lock."""
    now = User.objects.get(pk=actor.pk)
    if any(getattr(actor, flag) and not getattr(now, flag) for flag in FLAGS_OF_SUPERUSER):
        raise PermissionDenied


def may_change(actor: Any, user: User) -> bool:
    """Whether the member of staff `actor` may change the user at all."""
    if actor.is_superuser:
        return True
    return actor.has_perm(CHANGE) and not user.is_superuser and permissions(user) <= permissions(actor)


def permissions(user: User) -> set[int]:
    """The ids of the permissions that the user has, or would have once active, by groups and directly."""
    given = Permission.objects.filter(Q(user=user) | Q(group__user=user))
    return set(given.order_by().values_list("pk", flat=True))


def is_last_superuser(user: User) -> bool:
    """Whether no other user could act as superuser. Locks all superusers: of two who step back at once, the second is last."""
    able = User.objects.filter(**dict.fromkeys(FLAGS_OF_SUPERUSER, True)).order_by("pk").select_for_update()
    return {found.pk for found in able} == {user.pk}


def check_shows(username: str) -> None:
    """Raise ValidationError for a name with characters that do not show, or that look like those of another alphabet."""
    if characters.unseen(username):
        raise ValidationError("The name has characters that do not show. Leave them out.")
    if characters.mixes_alphabets(username):
        raise ValidationError(
            "The name mixes letters of alphabets that look alike, such as Latin and Cyrillic. Use those of one."
        )


def lock_names() -> None:
    """Let nobody else make a user before the transaction ends: two names at once might differ by capital letters only."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('names of users'))")


def check_name(username: str) -> None:
    """Raise ValidationError for the name of a new user that the record could not tell from another's, or that does not show.

    Within a transaction, no other user gets a name before the transaction ends.
    """
    check_shows(username)
    lock_names()
    if alike := User.objects.filter(username__iexact=username).first():
        raise ValidationError(f"A user is called {alike.username}. Names must differ by more than capital letters.")


def create_superuser(username: str, password: str, *, email: str = "", by: Actor, cause: str) -> User:
    """Make a superuser, with its audit row. Raises ValidationError for a name like another user's."""
    with transaction.atomic():
        check_name(username)
        user: User = User.objects.create_superuser(username, email, password)
        record.change(user, {}, by=by, cause=cause)
    return user
