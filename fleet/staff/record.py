"""The audit rows of staff: log-ins, log-outs, and changes of users and groups. No row has a password, a code or a secret."""

from collections.abc import Mapping
from typing import Any, Literal

import structlog
from django.contrib.auth.models import Group, User

from audit import actors, trail
from audit.actions import Action
from audit.actors import Actor
from common import context
from policy import refusals

Method = Literal["password", "password_and_code", "password_and_recovery_code", "provider"]
"""How somebody logged in."""

Rule = Literal["wrong_password", "wrong_code", "paused", "provider_refused", "not_staff"]
"""Why a log-in was refused."""

Holder = User | Group
_SECRET = frozenset({"password"})  # fields whose values are compared, and never written
log = structlog.get_logger(__name__)


def login(user: User, method: Method) -> None:
    """Write the row of a log-in."""
    trail.record(Action.STAFF_LOGIN, by=actors.of_user(user), metadata={"method": method})
    log.info("staff_login", user=user.get_username(), method=method, address=context.current().client_ip)


def logout(user: User) -> None:
    """Write the row of a log-out."""
    trail.record(Action.STAFF_LOGOUT, by=actors.of_user(user))
    log.info("staff_logout", user=user.get_username())


def login_failed(rule: Rule, username: str) -> None:
    """Write or count the row of a refused log-in, and write its log line. Must not run inside a transaction that is rolled back.

    `username` is the name as given. Only the name of an existing user is kept: other text may be a password, typed into the field
    for the name.
    """
    known = username if User.objects.filter(username=username).exists() else ""
    address = context.current().client_ip or "an unknown address"
    named = {"user": known} if known else {}
    counted_as = f"{known or 'no user'} from {address}"
    refusals.record(
        Action.STAFF_LOGIN_FAILED, trail.NOTHING, by=actors.ANONYMOUS, metadata={"rule": rule, **named}, counted_as=counted_as
    )
    log.warning("staff_login_failed", user=known, reason=rule, address=address)


def snapshot(holder: Holder) -> dict[str, Any]:
    """The fields of a user or a group whose changes are recorded, as the database has them; empty for a holder not saved yet.

    Locks the row of the holder until the end of the transaction: nobody else changes the holder in between.
    """
    if not holder.pk:
        return {}
    if isinstance(holder, Group):
        group = Group.objects.select_for_update().get(pk=holder.pk)
        return {"name": group.name, "permissions": _names(group.permissions)}
    user = User.objects.select_for_update().get(pk=holder.pk)
    plain = ("username", "password", "first_name", "last_name", "email", "is_active", "is_staff", "is_superuser")
    return {
        **{name: getattr(user, name) for name in plain},
        "groups": sorted(user.groups.values_list("name", flat=True)),
        "user_permissions": _names(user.user_permissions),
    }


def _names(permissions: Any) -> list[str]:
    """The permissions as `app.codename`, sorted."""
    pairs = permissions.order_by().values_list("content_type__app_label", "codename")
    return sorted(f"{app}.{codename}" for app, codename in pairs)


def change(holder: Holder, before: Mapping[str, Any], *, by: Actor, cause: str = "") -> None:
    """Write the row of what has changed since the snapshot `before`, in the transaction of the change; no row for no change."""
    after = snapshot(holder)
    fields = [name for name in after if not before or before[name] != after[name]]
    if fields:
        what = "changed" if before else "created"
        _record_change(holder, what, fields, before, after, by=by, cause=cause)


def removal(group: Group, *, by: Actor) -> None:
    """Write the row of a group that is about to be removed, with its members, in the transaction of the removal."""
    before = {**snapshot(group), "members": sorted(group.user_set.values_list("username", flat=True))}
    _record_change(group, "removed", list(before), before, {}, by=by)


def second_factor(user: User, *, is_on: bool, by: Actor, cause: str = "") -> None:
    """Write the row of a second factor that was set up or removed, in the transaction of the change."""
    before, after = {"second_factor": not is_on}, {"second_factor": is_on}
    _record_change(user, "changed", ["second_factor"], before, after, by=by, cause=cause)


def recovery_codes(user: User, *, by: Actor) -> None:
    """Write the row of new recovery codes, in the transaction of the change."""
    _record_change(user, "changed", ["recovery_codes"], {}, {}, by=by)


def identity(user: User, before: Mapping[str, str], after: Mapping[str, str], *, by: Actor, cause: str = "") -> None:
    """Write the row of a user who was linked with an identity at the provider, or parted from it, in the same transaction."""
    if before != after:
        _record_change(user, "changed", sorted(after), before, after, by=by, cause=cause)


def _record_change(
    holder: Holder,
    what: str,
    fields: list[str],
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    by: Actor,
    cause: str = "",
) -> None:
    kind, name = ("group", holder.name) if isinstance(holder, Group) else ("user", holder.get_username())
    shown = [field for field in fields if field not in _SECRET]
    values = {
        label: {field: told[field] for field in shown if field in told}
        for label, told in (("before", before), ("after", after))
        if told and shown
    }
    causes = {"cause": cause} if cause else {}
    trail.record(Action.STAFF_CHANGE, by=by, metadata={kind: name, "change": what, "fields": fields, **values, **causes})
