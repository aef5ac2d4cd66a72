"""Forms of a product: a field per rule of the policy."""

from typing import Any

from django import forms
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminTextInputWidget

from policy.rules import MAX, RULES


class PolicyForm(forms.Form):
    """One whole number per rule; an empty field is no limit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, meaning in RULES.items():
            self.fields[name] = forms.IntegerField(
                min_value=0, max_value=MAX, required=False, help_text=f"{meaning} Empty is no limit.", label=name,
                widget=UnfoldAdminIntegerFieldWidget,
            )  # fmt: skip

    def policy(self) -> dict[str, int]:
        """The policy that the fields say; only of a valid form."""
        return {name: self.cleaned_data[name] for name in RULES if self.cleaned_data[name] is not None}


class Registration(PolicyForm):
    """A new product. What a slug may be is `products.register`'s to say."""

    slug = forms.CharField(
        max_length=63,
        widget=UnfoldAdminTextInputWidget,
        help_text="Names the product in the audit log: a-z, 0-9 and -, for good.",
    )
    display_name = forms.CharField(max_length=255, widget=UnfoldAdminTextInputWidget, help_text="For people.")
