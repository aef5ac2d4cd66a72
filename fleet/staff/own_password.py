"""The page on which staff change their own password."""

from typing import Any

from django.contrib.auth.views import PasswordChangeView
from django.http import HttpResponse
from django.urls import reverse_lazy

from fleet.staff import accounts, brakes, record
from fleet.staff.forms import OwnPassword


class OwnPasswordChange(PasswordChangeView):
    """The new password ends all other sessions of the user."""

    form_class = OwnPassword
    template_name = "registration/password_change_form.html"
    success_url = reverse_lazy("admin:password_change_done")

    def get_form(self, form_class: Any = None) -> Any:
        form = super().get_form(form_class)
        form.request = self.request  # type: ignore[attr-defined]  # `OwnPassword`
        return form

    def form_valid(self, form: Any) -> HttpResponse:
        with accounts.recorded(form.user, by=record.actor_of(form.user)):
            return super().form_valid(form)

    def form_invalid(self, form: Any) -> HttpResponse:
        response = super().form_invalid(form)
        return brakes.answer(response, form.paused) if form.paused else response
