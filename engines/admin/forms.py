"""Forms of staff's verbs."""

from django import forms
from unfold.widgets import UnfoldAdminTextInputWidget, UnfoldBooleanWidget

from policy.products import MAX_REASON


class Reason(forms.Form):
    """Why: kept with the operation and its audit rows."""

    reason = forms.CharField(
        max_length=200, required=False, widget=UnfoldAdminTextInputWidget, help_text="Optional; it is kept in the audit log."
    )


class Resumption(forms.Form):
    """Why a product is resumed."""

    reason = forms.CharField(max_length=MAX_REASON, widget=UnfoldAdminTextInputWidget, help_text="It is kept in the audit log.")


class Suspension(forms.Form):
    """Why a product is suspended, and whether its engines stop."""

    reason = forms.CharField(
        max_length=MAX_REASON,
        widget=UnfoldAdminTextInputWidget,
        help_text="It is kept in the audit log, and told to the product whenever it is refused.",
    )
    stop_engines = forms.BooleanField(
        required=False, widget=UnfoldBooleanWidget, help_text="Stop every engine that runs; otherwise they go on running."
    )
