"""The second page of a log-in, which asks for a code. Wrong codes have the brakes of wrong passwords."""

from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from fleet.staff import brakes, log_in, pending, record, second_factor
from fleet.staff.brakes import Paused
from fleet.staff.forms import Code
from fleet.staff.pending import Pending
from fleet.staff.second_factor import Method, NotSetUp

_AGAIN = "Log in again: it took too long, or your account has changed in between."


def ask(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    """The page; the way to the wanted page after a right code, and to the first page where no log-in is under way."""
    found = pending.find(request)
    if found is None:
        return _begin_again(request)
    form = Code(request.POST if request.method == "POST" else None)
    if not form.is_valid():
        return _page(request, form, context)
    try:
        method = _try(request, found, form.cleaned_data["code"])
    except NotSetUp:
        return _begin_again(request)
    except Paused as paused:
        record.login_failed("paused", found.user.get_username())
        form.add_error("code", str(paused))
        return brakes.answer(_page(request, form, context), paused)
    if method:
        return _go_on(request, found, method)
    record.login_failed("wrong_code", found.user.get_username())
    form.add_error("code", "The code is wrong, or was used before.")
    return _page(request, form, context)


@transaction.atomic
def _try(request: HttpRequest, found: Pending, code: str) -> Method | None:
    """Log the user in if the code is right. Raises Paused, NotSetUp.

    A user's codes are tried one after the other, because of the lock: so the next try sees the failure of this try.
    """
    username = found.user.get_username()
    second_factor.lock(found.user)
    brakes.check(username)
    method = second_factor.check(found.user, code)
    if method is None:
        brakes.failed(username)
    else:
        pending.end(request)
        log_in.complete(request, found.user, method)
    return method


def _go_on(request: HttpRequest, found: Pending, method: Method) -> HttpResponse:
    factor = second_factor.find(found.user)
    if method == "password_and_recovery_code" and factor:
        left = len(factor.recovery_hashes)
        messages.warning(
            request,
            f"You logged in with a recovery code, which is used up. Recovery codes left: {left}."
            " Make new ones on the page Second factor, in the menu of your account.",
        )
    return HttpResponseRedirect(found.back)


def _begin_again(request: HttpRequest) -> HttpResponse:
    if pending.end(request):
        messages.error(request, _AGAIN)
    return HttpResponseRedirect(reverse("admin:login"))


def _page(request: HttpRequest, form: Code, context: dict[str, Any]) -> HttpResponse:
    return TemplateResponse(request, "admin/staff/code.html", {**context, "title": "Log in", "form": form})
