"""The roles of staff: groups that every `migrate` brings to what TABLE says. A new permission is one more line of TABLE."""

from functools import reduce
from operator import or_
from typing import NamedTuple

from django.contrib.auth.models import Group, Permission
from django.db import transaction
from django.db.models import Q, QuerySet

from audit import actors
from fleet.staff import accounts

VIEWER, OPERATOR, AUDITOR, ADMIN = "viewer", "operator", "auditor", "admin"
NAMES = (VIEWER, OPERATOR, AUDITOR, ADMIN)

_ALL = NAMES
_ACTING = (OPERATOR, ADMIN)
_OVERSEEING = (AUDITOR, ADMIN)


class Line(NamedTuple):
    """A permission (`app.codename`), what it allows, and the roles that have it."""

    permission: str
    allows: str
    roles: tuple[str, ...]


TABLE = (
    Line("engines.view_engine", "look at engines", _ALL),
    Line("engines.view_operation", "look at operations", _ALL),
    Line("engines.view_host", "look at hosts, which have no page of their own", _ALL),
    Line("jobs.view_job", "look at periodic jobs", _ALL),
    Line("policy.view_product", "look at products, with their policies and the names of their keys", _ALL),
    Line("policy.view_platformkey", "look at the names of platform keys, which have no page of their own", _ALL),
    Line("audit.view_auditrow", "look at audit rows", _ALL),
    Line("engines.operate_engine", "start, stop, sleep, wake and restart engines", _ACTING),
    Line("engines.view_unregisteredengine", "look at engines that the runtime has and the registry does not", _ALL),
    Line("engines.adopt_unregisteredengine", "adopt unregistered engines", _ACTING),
    Line("engines.forget_unregisteredengine", "remove unregistered engines with their data", _ACTING),
    Line("engines.rotate_engine_key", "rotate an engine's key", _ACTING),
    Line("engines.destroy_engine", "destroy engines", _ACTING),
    Line("engines.reveal_engine_key", "look at an engine's key (`key_reveal` in the log)", (ADMIN,)),
    Line("policy.suspend_product", "suspend products, with their engines stopped or not, and resume them", _ACTING),
    Line(
        "policy.operate_product",
        "register products, edit policies and engine environments, override rules, issue, rotate and revoke platform keys:"
        " whoever issues a platform key may do everything that the key allows, such as read the keys of the product's engines",
        (ADMIN,),
    ),
    Line("policy.delete_product", "delete products without engines", (ADMIN,)),
    Line("policy.view_adminkey", "look at the admin keys' names", _OVERSEEING),
    Line(
        "policy.operate_adminkey",
        "issue and revoke admin keys: whoever may issue an admin key may do everything that the API offers",
        (ADMIN,),
    ),
    Line("auth.view_user", "look at users", _OVERSEEING),
    Line("auth.view_group", "look at groups", _OVERSEEING),
    Line(
        "auth.change_user",
        "activate and deactivate users, and change their names for people and addresses of e-mail; only of users who have no"
        " permission that one lacks oneself",
        (ADMIN,),
    ),
)


@transaction.atomic
def bring() -> None:
    """Make the missing groups of roles, and give each exactly the permissions of TABLE. A group that changes gets an audit row.

    Needs a database with all migrations. Two calls at once could make a group twice: `migrate` lets them take turns.
    """
    for role in NAMES:
        group = Group.objects.filter(name=role).first() or Group(name=role)
        with accounts.recorded(group, by=actors.SYSTEM, cause="roles"):
            if not group.pk:
                group.save()
            group.permissions.set(permissions(role))


def permissions(role: str | None = None) -> "QuerySet[Permission]":
    """The permissions of the role; without a role, all permissions that a page asks for."""
    lines = [line.permission.split(".") for line in TABLE if role is None or role in line.roles]
    return Permission.objects.filter(reduce(or_, (Q(content_type__app_label=app, codename=name) for app, name in lines)))
