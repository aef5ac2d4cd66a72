"""The second factor of a user: one-time codes of an authenticator app (TOTP, RFC 6238), and recovery codes.

    secret = second_factor.begin(user)                   # shown to the user, as a QR code for the app
    codes = second_factor.confirm(user, "123456", by=…)  # the app has the secret: from now on log-ins ask for a code
    second_factor.check(user, "654321")                  # at a log-in: how the code proves who the user is

The database has the secret encrypted, and recovery codes as hashes. Each code works once. Time is the database's.
"""

import base64
import re
import secrets
from typing import Literal

import pyotp
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F, Func, Value
from pyotp.exceptions import OTPVerificationError

from audit.actors import Actor
from common import times
from common.settings import settings
from fleet.staff import record
from fleet.staff.models import SecondFactor
from policy import crypto

ISSUER = "Roundhouse"
TOLERANCE = 1  # steps of 30 s that the clock of a phone may be early or late
RECOVERY_CODES = 10
_RECOVERY_BYTES = 15  # 120 bits: too many to try, so a plain hash is enough
_CODE = re.compile(r"[0-9]{6}")

Method = Literal["password_and_code", "password_and_recovery_code"]


class SecondFactorError(Exception):
    """Base of the refusals; the text is for the user."""


class WrongCode(SecondFactorError):
    """The code proves nothing: it is wrong, too old, or used."""


class AlreadySetUp(SecondFactorError):
    """The user has a second factor."""


class NotSetUp(SecondFactorError):
    """The user has no second factor, or none that is being set up."""


def is_required() -> bool:
    """Whether everybody who logs in with a password needs a second factor."""
    return settings.ENV.staff_second_factor == "required"


def find(user: User) -> SecondFactor | None:
    """The second factor that log-ins of the user ask for, or None."""
    return SecondFactor.objects.confirmed().filter(user=user).first()


def has(user: User) -> bool:
    """Whether log-ins of the user ask for a second factor; without a query for a user that `StaffBackend` found."""
    factor: SecondFactor | None = getattr(user, "second_factor", None)
    return factor is not None and factor.confirmed_at is not None


def lock(user: User) -> SecondFactor:
    """The user's second factor, locked until the end of the transaction. Raises NotSetUp."""
    found = SecondFactor.objects.confirmed().select_for_update().filter(user=user).first()
    if found is None:
        raise NotSetUp(f"{user.get_username()} has no second factor.")
    return found


# -- set-up ------------------------------------------------------------------------------------------------------------


@transaction.atomic
def begin(user: User) -> str:
    """Begin the set-up with a new secret, which replaces the secret of an unfinished set-up. Raises AlreadySetUp."""
    secret = pyotp.random_base32()
    encrypted = {"secret_ciphertext": crypto.encrypt(secret)}
    factor, is_new = SecondFactor.objects.select_for_update().get_or_create(user=user, defaults=encrypted)
    if factor.confirmed_at is not None:
        raise AlreadySetUp("You have a second factor already. Remove it first.")
    if not is_new:
        SecondFactor.objects.filter(user=user).update(**encrypted)
    return secret


@transaction.atomic
def unconfirmed_secret(user: User) -> str:
    """The secret of the set-up under way. Raises NotSetUp."""
    return _secret(_unconfirmed(user))


@transaction.atomic
def confirm(user: User, code: str, *, by: Actor) -> list[str]:
    """End the set-up with a code of the app, which is used up; returns the recovery codes. Raises NotSetUp, WrongCode."""
    factor = _unconfirmed(user)
    step = _step(factor, _cleaned(code))
    if step is None:
        raise WrongCode("The code is wrong. Does the phone show the right time?")
    codes = _make_codes()
    SecondFactor.objects.filter(user=user).update(
        confirmed_at=times.database_now(), last_step=step, recovery_hashes=_hashes(codes)
    )
    record.second_factor(user, is_on=True, by=by)
    return codes


def uri(secret: str, account: str) -> str:
    """What the QR code says to an authenticator app. The app shows `account` above its codes."""
    return pyotp.TOTP(secret).provisioning_uri(name=account, issuer_name=ISSUER)


def _unconfirmed(user: User) -> SecondFactor:
    found = SecondFactor.objects.select_for_update().filter(user=user, confirmed_at=None).first()
    if found is None:
        raise NotSetUp("No set-up is under way. Begin again.")
    return found


# -- codes -------------------------------------------------------------------------------------------------------------


def check(user: User, given: str) -> Method | None:
    """How the given code proves who the user is, or None. An accepted code is used up, also for a request at the same time."""
    code = _cleaned(given)
    if _use_code(user, code):
        return "password_and_code"
    return "password_and_recovery_code" if _use_recovery_code(user, code) else None


def _use_code(user: User, code: str) -> bool:
    """Accept the step of the code, unless this step or a later step was accepted before."""
    factor = find(user)
    step = factor and _step(factor, code)
    if factor is None or step is None:
        return False
    same = SecondFactor.objects.filter(user=user, confirmed_at=factor.confirmed_at)
    return bool(same.filter(last_step__lt=step).update(last_step=step))


def _use_recovery_code(user: User, code: str) -> bool:
    given = crypto.hash_key(code)
    having = SecondFactor.objects.confirmed().filter(user=user, recovery_hashes__contains=[given])
    return bool(having.update(recovery_hashes=Func(F("recovery_hashes"), Value(given), function="array_remove")))


def _step(factor: SecondFactor, code: str) -> int | None:
    """The number of the time step whose code this is: now, or up to TOLERANCE steps away; otherwise None."""
    if not _CODE.fullmatch(code):
        return None
    totp = pyotp.TOTP(_secret(factor))
    try:
        return totp.verify_and_get_timecode(code, for_time=times.database_now(), valid_window=TOLERANCE)
    except OTPVerificationError:
        return None


def _secret(factor: SecondFactor) -> str:
    return crypto.decrypt(factor.secret_ciphertext)


def _cleaned(given: str) -> str:
    """The code without the spaces and hyphens that apps and pages show for reading."""
    return re.sub(r"[\s-]", "", given).lower()


# -- recovery codes ----------------------------------------------------------------------------------------------------


@transaction.atomic
def renew_recovery_codes(user: User, *, by: Actor) -> list[str]:
    """Replace all recovery codes; returns the new ones. Raises NotSetUp."""
    lock(user)
    codes = _make_codes()
    SecondFactor.objects.filter(user=user).update(recovery_hashes=_hashes(codes))
    record.recovery_codes(user, by=by)
    return codes


def _make_codes() -> list[str]:
    """New recovery codes, in groups of four characters: letters and the digits 2 to 7, which nobody takes for letters."""
    made = (base64.b32encode(secrets.token_bytes(_RECOVERY_BYTES)).decode().lower() for _ in range(RECOVERY_CODES))
    return ["-".join(re.findall("....", code)) for code in made]


def _hashes(codes: list[str]) -> list[str]:
    return [crypto.hash_key(_cleaned(code)) for code in codes]


# -- removal -----------------------------------------------------------------------------------------------------------


@transaction.atomic
def remove(user: User, *, by: Actor, cause: str = "") -> None:
    """Remove the second factor: log-ins ask for the password alone. Raises NotSetUp."""
    lock(user).delete()
    record.second_factor(user, is_on=False, by=by, cause=cause)
