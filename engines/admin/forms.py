"""Forms for the actions of staff."""

from typing import Any

from django import forms
from unfold.widgets import UnfoldAdminTextInputWidget, UnfoldBooleanWidget

from engines.models import UnregisteredEngine
from policy.products import MAX_REASON


class Reason(forms.Form):
    """Why staff request an operation; kept with the operation and its audit rows."""

    reason = forms.CharField(
        max_length=200,
        required=False,
        widget=UnfoldAdminTextInputWidget,
        help_text="Optional. The reason is kept in the audit log.",
    )


class Adoption(Reason):
    """Why staff adopt an unregistered engine; and whose engine it is, where the runtime does not know."""

    def __init__(self, *args: Any, found: UnregisteredEngine, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        unknown = [name for name in ("product_slug", "user_id") if not getattr(found, name)]
        self.fields |= {name: _text(f"The runtime does not know the engine's {_WORDS[name]}.") for name in unknown}


_WORDS = {"product_slug": "product: give its slug", "user_id": "user: give the user's id"}


def _text(help_text: str) -> forms.CharField:
    return forms.CharField(max_length=255, widget=UnfoldAdminTextInputWidget, help_text=help_text)


class Resumption(forms.Form):
    """Why a product is resumed."""

    reason = forms.CharField(
        max_length=MAX_REASON, widget=UnfoldAdminTextInputWidget, help_text="The reason is kept in the audit log."
    )


class Suspension(forms.Form):
    """Why a product is suspended, and whether its engines stop."""

    reason = forms.CharField(
        max_length=MAX_REASON,
        widget=UnfoldAdminTextInputWidget,
        help_text="The reason is kept in the audit log. The product learns that it is suspended, not why.",
    )
    stop_engines = forms.BooleanField(
        required=False,
        widget=UnfoldBooleanWidget,
        help_text="Stop all running engines of the product; otherwise its engines go on running.",
    )
