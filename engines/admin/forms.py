"""Forms for the actions of staff."""

from django import forms
from unfold.widgets import UnfoldAdminTextInputWidget, UnfoldBooleanWidget

from policy.products import MAX_REASON


class Reason(forms.Form):
    """Why staff request an operation; kept with the operation and its audit rows."""

    reason = forms.CharField(
        max_length=200,
        required=False,
        widget=UnfoldAdminTextInputWidget,
        help_text="Optional. The reason is kept in the audit log.",
    )


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
