"""The log-in of staff: the form, and the steps from a right password to a session."""

from typing import Any

from django import forms
from django.contrib import auth
from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from unfold.forms import AuthenticationForm

from fleet.staff import brakes, confirmation, passwords, pending, record, second_factor
from fleet.staff.brakes import Paused
from fleet.staff.record import Method

MAX_BACK = 1000  # characters of an address to go back to; a session may hold it


class LogInForm(AuthenticationForm):  # type: ignore[misc]  # Unfold ships no types
    """A name and a password. `paused` is set where nobody looked at the password."""

    paused: Paused | None = None

    def clean(self) -> dict[str, Any]:
        username, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if username is not None and password:
            try:
                self.user_cache = passwords.check(self.request, username, password)
            except Paused as paused:
                self.paused = paused
                raise forms.ValidationError(str(paused)) from paused
            if self.user_cache is None:
                raise self.get_invalid_login_error()
        return dict(self.cleaned_data)


class LogIn(LoginView):
    """The page with the form. A paused log-in is answered with 429."""

    next_page = "admin:index"  # where the address names no page

    def form_valid(self, form: Any) -> HttpResponse:
        return proceed(self.request, form.get_user(), self.get_success_url())

    def form_invalid(self, form: Any) -> HttpResponse:
        response = super().form_invalid(form)
        return brakes.answer(response, form.paused) if form.paused else response


def proceed(request: HttpRequest, user: User, back: str) -> HttpResponse:
    """Go on after the right password: log the user in and lead to the page `back`, or first ask for the second factor."""
    back = back if len(back) <= MAX_BACK else reverse("admin:index")
    if second_factor.find(user):
        end(request)
        pending.begin(request, user, back)
        return HttpResponseRedirect(reverse("admin:login_code"))
    complete(request, user, "password")
    return HttpResponseRedirect(back)


@transaction.atomic
def complete(request: HttpRequest, user: User, method: Method) -> None:
    """Log the user in: session, time of the last log-in and audit row in one transaction. An earlier session is logged out."""
    if request.user.is_authenticated:
        end(request)
    auth.login(request, user, backend="fleet.staff.backend.StaffBackend")
    confirmation.begin(request, method)
    record.login(user, method)
    brakes.passed(user.get_username())


@transaction.atomic
def end(request: HttpRequest) -> None:
    """Log the user of the request out: session and audit row in one transaction. Nothing for somebody who is not logged in."""
    if request.user.is_authenticated:
        record.logout(request.user)
    auth.logout(request)
