"""The page on which staff change their own password."""

from typing import Any

from django.contrib.auth import update_session_auth_hash
from django.contrib.auth.models import User
from django.contrib.auth.views import PasswordChangeView
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import reverse_lazy

from audit import actors
from fleet.staff import accounts, brakes
from fleet.staff.forms import OwnPassword

_CHANGED = "Your account has been changed at the same moment, and your password was not. Log in again."


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
        """Store the new password, unless the user was deactivated, or has got another password, since the old one was checked."""
        user, checked = form.user, form.user.password
        user.set_password(form.cleaned_data["new_password1"])  # hashes, before the row is locked
        with accounts.recorded(user, by=actors.of_user(user)):
            is_same = User.objects.filter(pk=user.pk, password=checked, is_active=True, is_staff=True)
            is_done = is_same.update(password=user.password)
            if is_done and self.request.session.exists(self.request.session.session_key or ""):  # not logged out meanwhile
                update_session_auth_hash(self.request, user)
        if is_done:
            return HttpResponseRedirect(self.get_success_url())
        form.add_error(None, _CHANGED)
        return self.form_invalid(form)

    def form_invalid(self, form: Any) -> HttpResponse:
        response = super().form_invalid(form)
        return brakes.answer(response, form.paused) if form.paused else response
