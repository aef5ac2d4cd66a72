"""Forms of a product: a field per rule of the policy."""

from typing import Any

from django import forms
from django.core.validators import RegexValidator
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from policy.models import SLUG_PATTERN
from policy.rules import RULES, Rule, is_image, is_image_list


class RuleField(forms.CharField):
    """The value of a rule as JSON writes it; a list of names may be typed as lines or with commas."""

    def __init__(self, name: str, rule: Rule) -> None:
        self.rule = rule
        widget = UnfoldAdminTextareaWidget(attrs={"rows": 3}) if rule.takes == is_image_list else UnfoldAdminTextInputWidget()
        super().__init__(required=False, label=name, help_text=f"{rule.meaning} Leave empty for none.", widget=widget)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def clean(self, value: Any) -> Any:
        text = super().clean(value)
        if not text:
            return None
        parsed = self._parse(text)
        if not self.rule.takes(parsed):
            raise forms.ValidationError(f"Must be {self.rule.form}.")
        return parsed

    def _parse(self, text: str) -> Any:
        if self.rule.takes == is_image_list:
            return [name.strip() for name in text.replace(",", "\n").splitlines() if name.strip()]
        if self.rule.takes == is_image:
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
    """One field per rule; an empty field is no rule."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, rule in RULES.items():
            self.fields[name] = RuleField(name, rule)

    def policy(self) -> dict[str, Any]:
        """The policy that the fields say; only of a valid form."""
        return {name: self.cleaned_data[name] for name in RULES if self.cleaned_data[name] is not None}


class Registration(PolicyForm):
    """A new product."""

    slug = forms.CharField(
        max_length=63,
        validators=[RegexValidator(rf"\A{SLUG_PATTERN}\Z", "2 to 63 of a-z, 0-9 and -, starting with a letter or a digit.")],
        widget=UnfoldAdminTextInputWidget,
        help_text="Names the product in the audit log, for good.",
    )
    display_name = forms.CharField(max_length=255, widget=UnfoldAdminTextInputWidget, help_text="For people.")
