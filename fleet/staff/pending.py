"""A log-in between its two factors: the password was right, and a code is missing. The session is nobody's until then."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare

from common import times
from fleet.staff import second_factor

LONGEST = timedelta(minutes=5)  # from the password to the code
PENDING = "pending_log_in"  # key of a session's data


@dataclass(frozen=True)
class Pending:
    """Who gave the right password, and the path of the page that they want."""

    user: User
    back: str


def begin(request: HttpRequest, user: User, back: str) -> None:
    """Note in the session that the user has given the right password."""
    request.session[PENDING] = {
        "user": user.pk,
        "since": times.database_now().isoformat(),
        "password": user.get_session_auth_hash(),
        "back": back,
    }


def find(request: HttpRequest) -> Pending | None:
    """The log-in under way in the session.

    None after LONGEST, and once the user is inactive, has another password, or has no second factor any more.
    """
    noted = request.session.get(PENDING)
    if noted is None or not timedelta(0) <= times.database_now() - datetime.fromisoformat(noted["since"]) < LONGEST:
        return None
    user = User.objects.filter(pk=noted["user"], is_active=True, is_staff=True).first()
    if user is None or not constant_time_compare(noted["password"], user.get_session_auth_hash()):
        return None
    return Pending(user, noted["back"]) if second_factor.find(user) else None


def end(request: HttpRequest) -> bool:
    """Forget the log-in under way; returns whether there was any, such as one that took too long."""
    return request.session.pop(PENDING, None) is not None
