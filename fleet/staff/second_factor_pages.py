"""The pages on which staff set up, renew and remove their own second factor, and the way to them where it is required."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, cast

import segno
from django.contrib import messages
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.safestring import mark_safe

from audit import actors
from common import wording
from fleet.staff import log_in, second_factor
from fleet.staff.confirmation import METHOD
from fleet.staff.forms import Code
from fleet.staff.second_factor import SecondFactorError, WrongCode

_PROVEN = frozenset({"password_and_code", "password_and_recovery_code", "provider"})  # methods of log-ins that lack nothing
_FREE = frozenset({"second_factor", "second_factor_set_up", "password_change", "password_change_done", "logout"})
_RENEWAL = "You get ten new recovery codes. The codes that you have now stop working."
_REMOVAL = "Your next log-in asks for your password alone. Your recovery codes stop working."


class Site(Protocol):
    """What the pages need of `fleet.staff.site`."""

    def each_context(self, request: HttpRequest) -> dict[str, Any]: ...

    def ask_again(self, request: HttpRequest) -> HttpResponse | None: ...


View = Callable[[Site, HttpRequest], HttpResponse]


def lead(request: HttpRequest) -> HttpResponse | None:
    """The way that a session by a password alone has to take; None for whoever may go on.

    To the log-in, which ends the session, once the user has set up a second factor elsewhere: the password alone is not enough
    any more. To the set-up, where a second factor is required.
    """
    if _has_proven(request):
        return None
    if second_factor.has(_user(request)):
        log_in.end(request)
        messages.info(request, "You have set up a second factor since you logged in. Log in again.")
        return HttpResponseRedirect(reverse("admin:login"))
    match = request.resolver_match
    return _back() if second_factor.is_required() and not (match and match.url_name in _FREE) else None


def _user(request: HttpRequest) -> User:
    """The user of the request, who is logged in: `admin_view` lets in nobody else."""
    return cast(User, request.user)


def _has_proven(request: HttpRequest) -> bool:
    """Whether the session began with a second factor, or at a provider, which sees to it."""
    return request.session.get(METHOD) in _PROVEN


def _guarded(view: View) -> View:
    """For users with a password of ours, who gave it within 10 minutes. A refusal becomes a message on the page of the state."""

    @wraps(view)
    def guarded(site: Site, request: HttpRequest) -> HttpResponse:
        if not _user(request).has_usable_password():
            return _back()
        if page := site.ask_again(request):
            return page
        try:
            return view(site, request)
        except SecondFactorError as refused:
            messages.error(request, str(refused))
            return _back()

    return guarded


# -- the pages ---------------------------------------------------------------------------------------------------------


def show(site: Site, request: HttpRequest) -> HttpResponse:
    """The state of the user's second factor, and what the user may do."""
    factor = second_factor.find(_user(request)) if _user(request).has_usable_password() else None
    return _page(
        site, request, "admin/staff/second_factor.html", "Second factor",
        confirmed=wording.moment(factor.confirmed_at) if factor else "",
        left=len(factor.recovery_hashes) if factor else 0,
        is_required=second_factor.is_required(),
        is_missing=second_factor.is_required() and not _has_proven(request),
    )  # fmt: skip


@_guarded
def set_up(site: Site, request: HttpRequest) -> HttpResponse:
    """Show a new secret, and ask for a code of the app; after a right code, show the recovery codes."""
    if request.method != "POST":
        return _back()
    if "code" not in request.POST:
        return _show_secret(site, request, second_factor.begin(_user(request)), Code())
    secret, form = second_factor.unconfirmed_secret(_user(request)), Code(request.POST)
    if form.is_valid():
        try:
            codes = second_factor.confirm(_user(request), form.cleaned_data["code"], by=actors.of_user(_user(request)))
        except WrongCode as wrong:
            form.add_error("code", str(wrong))
        else:
            if not _has_proven(request):
                request.session[METHOD] = "password_and_code"
            return _show_codes(site, request, codes)
    return _show_secret(site, request, secret, form)


@_guarded
def renew_recovery_codes(site: Site, request: HttpRequest) -> HttpResponse:
    """Show a confirmation page; on POST, show new recovery codes."""
    if request.method != "POST":
        return _confirm(site, request, "Make new recovery codes", _RENEWAL)
    return _show_codes(site, request, second_factor.renew_recovery_codes(_user(request), by=actors.of_user(_user(request))))


@_guarded
def remove(site: Site, request: HttpRequest) -> HttpResponse:
    """Show a confirmation page; on POST, remove the second factor."""
    if second_factor.is_required():
        raise SecondFactorError("A second factor is required here, so you cannot remove yours.")
    if request.method != "POST":
        return _confirm(site, request, "Remove your second factor", _REMOVAL)
    second_factor.remove(_user(request), by=actors.of_user(_user(request)))
    messages.success(request, "Your second factor is removed.")
    return _back()


PAGES: tuple[tuple[str, View, str], ...] = (
    ("second-factor/", show, "second_factor"),
    ("second-factor/set-up/", set_up, "second_factor_set_up"),
    ("second-factor/recovery-codes/", renew_recovery_codes, "second_factor_recovery_codes"),
    ("second-factor/remove/", remove, "second_factor_remove"),
)


# -- answers -----------------------------------------------------------------------------------------------------------


def _page(site: Site, request: HttpRequest, template: str, title: str, **context: Any) -> HttpResponse:
    shown = {**site.each_context(request), "title": title, "back": reverse("admin:second_factor"), **context}
    return TemplateResponse(request, template, shown)


def _show_secret(site: Site, request: HttpRequest, secret: str, form: Code) -> HttpResponse:
    """The secret, as a picture of dark squares on white, whatever the theme: apps read no other QR codes reliably."""
    account = f"{_user(request).get_username()}@{request.get_host()}"
    picture = segno.make(second_factor.uri(secret, account), error="m", micro=False)
    qr = mark_safe(picture.svg_inline(scale=4, dark="#000", light="#fff", svgclass="rh-qr"))  # noqa: S308 (only numbers)
    shown = {"qr": qr, "secret": secret, "form": form}
    return _page(site, request, "admin/staff/set_up_second_factor.html", "Set up a second factor", **shown)


def _show_codes(site: Site, request: HttpRequest, codes: list[str]) -> HttpResponse:
    return _page(site, request, "admin/staff/recovery_codes.html", "Your recovery codes", codes=codes)


def _confirm(site: Site, request: HttpRequest, title: str, warning: str) -> HttpResponse:
    return _page(site, request, "admin/confirm.html", title, warning=warning, label=title)


def _back() -> HttpResponse:
    return HttpResponseRedirect(reverse("admin:second_factor"))
