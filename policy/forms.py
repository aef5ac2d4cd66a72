"""The admin's forms for products (policy, keys, engine environment) and for admin keys."""

from typing import Any

from django import forms
from django.core.validators import RegexValidator
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from policy import admin_keys, environments, overrides, products
from policy.errors import InvalidEngineEnv
from policy.keys import MAX_S
from policy.models import SLUG_PATTERN, Scope
from policy.rules import INTERNET, NO_EGRESS, RULES, Rule, is_egress, is_image, is_image_list, is_runtime


class RuleField(forms.CharField):
    """A form field for the value of a rule. Lists are typed one entry per line or separated by commas."""

    def __init__(self, name: str, rule: Rule) -> None:
        self.rule = rule
        is_list = rule.takes in (is_image_list, is_egress)
        widget = UnfoldAdminTextareaWidget(attrs={"rows": 3}) if is_list else UnfoldAdminTextInputWidget()
        super().__init__(required=False, label=name, help_text=f"{rule.meaning} Leave empty for no rule.", widget=widget)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def clean(self, value: Any) -> Any:
        text = super().clean(value)
        if not text:
            return None
        parsed = self._parse(text)
        if not self.rule.takes(parsed):
            raise forms.ValidationError(f"Must be {self.rule.wants()}.")
        return parsed

    def _parse(self, text: str) -> Any:
        if self.rule.takes == is_egress and text in (INTERNET, NO_EGRESS):
            return text
        if self.rule.takes in (is_image_list, is_egress):
            return [name.strip() for name in text.replace(",", "\n").split("\n") if name.strip()]
        if self.rule.takes in (is_image, is_runtime):
            return text
        try:
            return int(text)
        except ValueError:
            return _number(text)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


class PolicyForm(forms.Form):
    """A form with one field per rule; an empty field leaves the rule out of the policy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, rule in RULES.items():
            self.fields[name] = RuleField(name, rule)

    def policy(self) -> dict[str, Any]:
        """Return the policy of the filled-in fields; only for a valid form."""
        return {name: self.cleaned_data[name] for name in RULES if self.cleaned_data[name] is not None}


class Registration(PolicyForm):
    """The form for registering a product."""

    slug = forms.CharField(
        max_length=63,
        validators=[RegexValidator(rf"\A{SLUG_PATTERN}\Z", "2 to 63 of a-z, 0-9 and -, starting with a letter or a digit.")],
        widget=UnfoldAdminTextInputWidget,
        help_text="Names the product in the audit log; cannot be changed later.",
    )
    display_name = forms.CharField(max_length=255, widget=UnfoldAdminTextInputWidget, help_text="A name for people.")


DAY_S, HOUR_S = 24 * 3600, 3600


class OverrideForm(forms.Form):
    """The form for granting an override."""

    rule = forms.ChoiceField(choices=[(name, name) for name in RULES], widget=UnfoldAdminSelectWidget)
    value = forms.CharField(widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}), help_text="Typed as in the policy's form.")
    hours = forms.IntegerField(
        min_value=1,
        max_value=overrides.MAX_S // HOUR_S,
        initial=24,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="After these hours the override ends, and the rule has the policy's value again.",
    )
    reason = forms.CharField(
        max_length=products.MAX_REASON, widget=UnfoldAdminTextInputWidget, help_text="Kept in the audit log."
    )

    def clean(self) -> dict[str, Any]:
        """Check the value by the chosen rule, and convert it to the rule's type."""
        cleaned: dict[str, Any] = super().clean() or {}
        if "rule" in cleaned and "value" in cleaned:
            try:
                cleaned["value"] = RuleField(cleaned["rule"], RULES[cleaned["rule"]]).clean(cleaned["value"])
            except forms.ValidationError as error:
                self.add_error("value", error)
        return cleaned


class _Expiry(forms.Form):
    """The field for the expiry of a new key."""

    expires_in_days = forms.IntegerField(
        min_value=1,
        max_value=MAX_S // DAY_S,
        required=False,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="Leave empty for a key without expiry, valid until revoked.",
    )

    def expires_in_s(self) -> int | None:
        """Return the lifetime in seconds, or None for no expiry; only for a valid form."""
        days = self.cleaned_data["expires_in_days"]
        return None if days is None else days * DAY_S


class NewKey(_Expiry):
    """The form for issuing a platform key."""

    scopes = forms.MultipleChoiceField(
        choices=Scope.choices,
        initial=Scope.values,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="admit: admit users. lifecycle: provision, start, stop, destroy, rotate engines' keys. read: read only.",
    )


class Rotation(_Expiry):
    """The form for rotating the platform keys of a product."""

    overlap_hours = forms.IntegerField(
        min_value=0,
        max_value=MAX_S // HOUR_S,
        initial=products.OVERLAP_S // HOUR_S,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="The current keys stay valid for these hours; 0 ends them at once.",
    )

    def overlap_s(self) -> int:
        """Return the overlap in seconds; only for a valid form."""
        return int(self.cleaned_data["overlap_hours"]) * HOUR_S


class NewAdminKey(_Expiry):
    """The form for issuing an admin key."""

    name = forms.CharField(
        max_length=admin_keys.MAX_NAME, widget=UnfoldAdminTextInputWidget, help_text="Names the key in the audit log."
    )


class _WriteOnly(UnfoldAdminTextareaWidget):  # type: ignore[misc]  # Unfold ships no types
    """A text area without its value: an invalid form never shows the typed values again."""

    def format_value(self, value: Any) -> str:
        return ""


class EnvForm(forms.Form):
    """The form for replacing the engine environment of a product."""

    env = forms.CharField(
        required=False,
        strip=False,
        label="Variables",
        widget=_WriteOnly(attrs={"rows": 12, "spellcheck": "false", "autocomplete": "off"}),
        help_text="NAME=value, one variable per line. The new variables replace all old ones; leave empty for no variables.",
    )

    def clean_env(self) -> dict[str, str]:
        # Browsers send both characters at a line's end. No other character ends a line: it may belong to a value.
        lines = [line for line in self.cleaned_data["env"].replace("\r\n", "\n").split("\n") if line.strip()]
        pairs = [line.partition("=") for line in lines]
        if any(not equals for _, equals, _ in pairs):
            raise forms.ValidationError("Every line must be NAME=value.")
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise forms.ValidationError("A name occurs twice.")
        try:
            return environments.check({name.strip(): value for name, _, value in pairs})
        except InvalidEngineEnv as error:
            raise forms.ValidationError(str(error)) from error
