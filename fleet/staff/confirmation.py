"""The password, or the provider, asked once more: before a page that shows a secret, or changes who may do what.

A browser that was left open must not be enough for these pages. Whoever proved within the last 10 minutes who they are, by a
log-in or by the password on our page, is not asked. The page keeps what was sent in a form, new passwords excepted, and sends it
again with the password.
Users of single sign-on have no password: the provider asks them, and leads back (`fleet.staff.provider`).
"""

from datetime import datetime, timedelta
from typing import Any, cast
from urllib.parse import urlsplit

from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.cache import add_never_cache_headers

from common import times
from common.settings import settings
from fleet.staff import brakes, passwords
from fleet.staff.brakes import Paused
from fleet.staff.forms import PasswordAgain
from fleet.staff.record import Method

KEPT = timedelta(minutes=10)
CONFIRMED, METHOD = "confirmed_at", "method"  # keys of a session's data
PASSWORD, REPEAT = "password_again", "repeat_request"  # fields of the page
_NOT_KEPT = frozenset({PASSWORD, REPEAT, "csrfmiddlewaretoken", "password1", "password2"})


def begin(request: HttpRequest, method: Method) -> None:
    """Begin the session of somebody who has just proved who they are, by `method`. Saves the session."""
    session: Any = request.session
    session[METHOD] = method
    session.begin()
    note(request)
    session.save()
    session.prolong()


def note(request: HttpRequest) -> None:
    """Note that the user of the request has just proved who they are."""
    request.session[CONFIRMED] = times.database_now().isoformat()


def forget(request: HttpRequest) -> None:
    """Note that nobody knows when the user of the request last proved who they are: not now, in any case."""
    del request.session[CONFIRMED]


def is_recent(request: HttpRequest) -> bool:
    """Whether the user of the request proved within KEPT who they are, by the database's clock."""
    noted = request.session.get(CONFIRMED)
    if noted is None:
        return False
    return timedelta(0) <= times.database_now() - datetime.fromisoformat(noted) < KEPT


def ask(request: HttpRequest, context: dict[str, Any]) -> HttpResponse | None:
    """None if the user proved recently who they are, or has given the right password on our page with this request.

    Otherwise the page that asks for the password, with `context`, or the way back to a request without a form.
    """
    if is_recent(request):
        # A page of ours that was sent again, such as from a second tab, is no form that carries anything out.
        return _back_to_page(request) if request.POST.get(REPEAT, "POST") != "POST" else None
    if settings.ENV.oidc_issuer and not cast(User, request.user).has_usable_password():
        return _page_of_provider(request, context)
    if request.method != "POST" or PASSWORD not in request.POST:
        return _page(request, PasswordAgain(), context)
    form = PasswordAgain(request.POST)
    try:
        if not form.is_valid():
            return _page(request, form, context)
        found = passwords.check(request, request.user.get_username(), form.cleaned_data[PASSWORD])
    except Paused as paused:
        form.add_error(PASSWORD, str(paused))
        return brakes.answer(_page(request, form, context), paused)
    if found != request.user:
        form.add_error(PASSWORD, "The password is wrong.")
        return _page(request, form, context)
    note(request)
    return None if request.POST.get(REPEAT) == "POST" else _back_to_page(request)


def _back_to_page(request: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect(request.get_full_path())


def _page(request: HttpRequest, form: PasswordAgain, context: dict[str, Any]) -> HttpResponse:
    """The page, which keeps the fields of the form that it interrupts."""
    kept = [(name, value) for name, values in request.POST.lists() if name not in _NOT_KEPT for value in values]
    repeat = request.POST.get(REPEAT, request.method)
    shown = {"title": "Confirm that it is you", "form": form, "kept": kept, "repeat": repeat, **context}
    return _uncached(TemplateResponse(request, "admin/staff/confirm_password.html", shown))


def _page_of_provider(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    """The page for somebody without a password, who proves at the provider who they are. `fleet.staff.provider` leads back."""
    shown = {"title": "Confirm that it is you", "provider": settings.ENV.oidc_name, "back": _back(request), **context}
    return _uncached(
        TemplateResponse(request, "admin/staff/confirm_at_provider.html", {**shown, "is_form": request.method == "POST"})
    )


def _back(request: HttpRequest) -> str:
    """The page itself; for a form, which no link can send again, the page of the admin on which the form stood."""
    if request.method != "POST":
        return request.get_full_path()
    page = urlsplit(request.headers.get("Referer", ""))
    is_ours = page.netloc == request.get_host()
    return page._replace(scheme="", netloc="", fragment="").geturl() if is_ours else reverse("admin:index")


def _uncached(response: HttpResponse) -> HttpResponse:
    add_never_cache_headers(response)
    return response
