"""Visits to the provider of single sign-on: what a browser takes along on its way there and back, in an encrypted cookie.

A stranger may begin as many visits as they like: no session and no row is made. Only the browser that began a visit can end it,
so nobody can make others log in to an account that is not theirs.
"""

import contextlib
import json
import secrets
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from cryptography.fernet import InvalidToken
from django.conf import settings as django_settings
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from common import times
from policy import crypto

KEPT = timedelta(minutes=10)
COOKIE = "provider_visit"


@dataclass(frozen=True)
class Visit:
    """The secrets of a visit, and its purpose. `state` and `nonce` come back; `verifier` is for the provider (PKCE)."""

    state: str
    nonce: str
    verifier: str
    began: str  # ISO, by the database's clock
    back: str  # the page of the admin that follows
    confirms: str  # the name of the user who is logged in and confirms who they are; empty for a log-in

    @property
    def began_at(self) -> datetime:
        return datetime.fromisoformat(self.began)


def begin(back: str, confirms: str = "") -> Visit:
    """A new visit."""
    state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
    return Visit(state, nonce, verifier, times.database_now().isoformat(), back, confirms)


def keep(response: HttpResponse, visit: Visit) -> None:
    """Give the visit to the browser. The next visit of the browser takes its place."""
    response.set_cookie(
        COOKIE,
        crypto.encrypt(json.dumps(asdict(visit))),
        max_age=KEPT,
        path=reverse("admin:provider"),
        secure=django_settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",  # the provider leads back here by a link
    )


def find(request: HttpRequest) -> Visit | None:
    """The visit that the browser began at most KEPT ago."""
    with contextlib.suppress(InvalidToken, ValueError, TypeError):
        visit = Visit(**json.loads(crypto.decrypt(request.COOKIES.get(COOKIE, ""))))
        return visit if timedelta(0) <= times.database_now() - visit.began_at < KEPT else None
    return None


def is_of(visit: Visit, state: str) -> bool:
    """Whether an answer with `state` answers the visit."""
    return crypto.matches(state, visit.state)


def forget(response: HttpResponse) -> None:
    """Take the visit from the browser: each visit serves once."""
    response.delete_cookie(COOKIE, path=reverse("admin:provider"), samesite="Lax")
