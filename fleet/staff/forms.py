"""Forms of staff: users changed by staff, one's own password, the password given once more, and codes of a second factor."""

from typing import Any, ClassVar

from django import forms
from django.contrib.auth.models import User
from django.http import HttpRequest
from unfold import forms as unfold
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldAdminTextInputWidget

from fleet.staff import accounts, identities, openid, passwords
from fleet.staff.brakes import Paused


class PasswordAgain(forms.Form):
    """The password of whoever is logged in, asked for once more."""

    password_again = forms.CharField(
        label="Your password",
        strip=False,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "current-password", "autofocus": ""}),
    )


class Code(forms.Form):
    """A code of an authenticator app, or a recovery code."""

    code = forms.CharField(
        max_length=64,
        widget=UnfoldAdminTextInputWidget(
            attrs={"autocomplete": "one-time-code", "autocapitalize": "none", "spellcheck": "false", "autofocus": ""}
        ),
    )


class OwnPassword(unfold.AdminOwnPasswordChangeForm):  # type: ignore[misc]  # Unfold ships no types
    """A new password for oneself. Guesses of the old one have the brakes of a log-in."""

    request: HttpRequest
    user: User
    paused: Paused | None = None

    def clean_old_password(self) -> str:
        given: str = self.cleaned_data["old_password"]
        try:
            found = passwords.check(self.request, self.user.get_username(), given)
        except Paused as paused:
            self.paused = paused
            raise forms.ValidationError(str(paused)) from paused
        if found is None or found != self.user:
            raise forms.ValidationError(self.error_messages["password_incorrect"], code="password_incorrect")
        self.user = found  # as the password was checked, and not as the request began
        return given


class NewUser(unfold.UserCreationForm):  # type: ignore[misc]  # Unfold ships no types
    """A new user; the name is for good."""

    class Meta(unfold.UserCreationForm.Meta):  # type: ignore[misc]
        help_texts: ClassVar = {"username": "The record names the user by this name, so nobody can change it later."}

    def clean_username(self) -> str:
        username: str = super().clean_username() or ""  # None if the name is taken
        if username:
            accounts.check_name(username)
        return username


class UserForm(unfold.UserChangeForm):  # type: ignore[misc]  # Unfold ships no types
    """A user, changed by staff. The last active superuser stays one. Superusers link the user with the provider."""

    subject = forms.CharField(
        label="Subject at the provider",
        required=False,
        max_length=openid.MAX_SUBJECT,
        widget=UnfoldAdminTextInputWidget,
        help_text="Who the person is at the provider of single sign-on: its claim “sub”. The person then logs in as this user.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "subject" in self.fields:  # in the form of superusers
            self.initial["subject"] = identities.subject_of(self.instance)

    def clean_subject(self) -> str:
        given: str = self.cleaned_data["subject"]
        identities.check_subject(self.instance, given)
        return given

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        stays = all(cleaned.get(flag, getattr(self.instance, flag)) for flag in accounts.FLAGS_OF_SUPERUSER)
        if not stays and accounts.is_last_superuser(self.instance):
            raise forms.ValidationError(
                "This is the last active superuser: make another user a superuser first, or nobody could give permissions."
            )
        return dict(cleaned)
