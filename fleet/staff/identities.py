"""Users of single sign-on: found by issuer and subject, made at their first log-in, with the groups that the provider's give.

A user of the provider never becomes a local user because of a name: whoever calls themselves `root` there gets no account of
ours with this name. A superuser may link both. No flag of a user is changed here.
"""

from typing import Any

import structlog
from django.contrib.auth.models import Group, User
from django.core.exceptions import ValidationError
from django.db import transaction

from audit import actors
from audit.actors import Actor
from common.settings import settings
from fleet.staff import accounts, record
from fleet.staff.models import Identity
from fleet.staff.openid import Claims
from fleet.staff.record import Rule

CAUSE = "provider"
log = structlog.get_logger(__name__)


class Refused(Exception):
    """The provider has proved who somebody is, and they may not log in. The text is for them, `reason` for the log."""

    def __init__(self, reason: str, sentence: str, username: str = "", rule: Rule = "provider_refused") -> None:
        super().__init__(sentence)
        self.reason, self.username, self.rule = reason, username, rule


def find(claims: Claims) -> User | None:
    """The user with the issuer and the subject of the claims."""
    found = Identity.objects.select_related("user").filter(issuer=claims["iss"], subject=claims["sub"]).first()
    return found.user if found else None


def groups_of(claims: Claims) -> list[Group]:
    """Our groups that the provider's groups in the claims give. A group that we do not have gives nothing, with a log line."""
    given = claims.get(settings.ENV.oidc_groups_claim)
    theirs = given if isinstance(given, list) else [given]
    names = {ours for name, ours in settings.ENV.oidc_mapping if name in theirs}
    found = list(Group.objects.filter(name__in=names))
    for missing in sorted(names - {group.name for group in found}):
        log.warning("provider_group_missing", group=missing)
    return found


@transaction.atomic
def admit(claims: Claims, groups: list[Group]) -> User:
    """The user of the claims, made if new, with exactly these groups. Raises Refused, and IntegrityError for two at once."""
    user = find(claims)
    if user is None:
        return _create(claims, groups)
    _check_may_log_in(user)
    with accounts.recorded(user, by=actors.SYSTEM, cause=CAUSE):
        user.groups.set(groups)
    return user


def expel(claims: Claims) -> str:
    """Take all groups from the user of the claims, so that sessions still open permit nothing. Return the user's name."""
    user = find(claims)
    if user is None:
        return ""
    with accounts.recorded(user, by=actors.SYSTEM, cause=CAUSE):
        user.groups.clear()
    return user.get_username()


def _check_may_log_in(user: User) -> None:
    if not user.is_active:
        raise Refused("deactivated", "Your account is deactivated.", user.get_username())
    if not user.is_staff:
        raise Refused("not_staff", "Your account is not an account of staff.", user.get_username(), "not_staff")


def _create(claims: Claims, groups: list[Group]) -> User:
    """A user with the name that the provider tells, without a password. Raises Refused."""
    given = claims.get("preferred_username") or claims.get("email")
    user = User(username=User.normalize_username(given) if isinstance(given, str) else "", email=_email(claims), is_staff=True)
    user.set_unusable_password()
    try:
        user.full_clean(validate_unique=False, exclude=["email"])
        accounts.check_shows(user.username)
    except ValidationError as error:
        raise Refused("no_name", "The provider gives you no name that a user may have here.") from error
    _check_is_free(user, claims)
    with accounts.recorded(user, by=actors.SYSTEM, cause=CAUSE):
        user.save()
        user.groups.set(groups)
    link(user, claims["sub"], by=actors.SYSTEM, cause=CAUSE)
    return user


def _email(claims: Claims) -> str:
    """The address of e-mail, for people to read; empty for text that is none."""
    given = claims.get("email")
    try:
        return str(User._meta.get_field("email").clean(given, None)) if isinstance(given, str) else ""
    except ValidationError:
        return ""


def _check_is_free(user: User, claims: Claims) -> None:
    """Raise Refused if a user has the name, in whatever case: nobody should look like somebody else."""
    accounts.lock_names()
    if User.objects.filter(username__iexact=user.username).exists():
        sentence = (
            f"Another user has the name {user.username} already. If it is you, a superuser can link the account: on the user's"
            f" page, with {claims['sub']} as the subject at the provider."
        )
        raise Refused("name_taken", sentence, user.username)


# -- the link ----------------------------------------------------------------------------------------------------------


def subject_of(user: Any) -> str:
    """The user's subject at the provider of today; empty for a user without."""
    found = Identity.objects.filter(user_id=user.pk, issuer=settings.ENV.oidc_issuer).first()
    return found.subject if found else ""


def check_subject(user: User, subject: str) -> None:
    """Raise ValidationError if another user has the subject."""
    if Identity.objects.filter(issuer=settings.ENV.oidc_issuer, subject=subject).exclude(user=user).exists():
        raise ValidationError("Another user has this subject.")


@transaction.atomic
def link(user: User, subject: str, *, by: Actor, cause: str = "") -> None:
    """Make the subject the user's, in place of an earlier one, with its audit row; without a subject, end the link."""
    before = _told(user)
    Identity.objects.filter(user=user).delete()
    if subject:
        Identity.objects.create(user=user, issuer=settings.ENV.oidc_issuer, subject=subject)
    record.identity(user, before, _told(user), by=by, cause=cause)


def _told(user: User) -> dict[str, str]:
    """The user's identity in the values of an audit row."""
    found = Identity.objects.filter(user=user).first()
    return {"issuer": found.issuer, "subject": found.subject} if found else {"issuer": "", "subject": ""}
