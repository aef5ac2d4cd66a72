"""Forms of staff's verbs."""

from django import forms
from unfold.widgets import UnfoldAdminTextInputWidget


class Reason(forms.Form):
    """Why: kept with the operation and its audit rows."""

    reason = forms.CharField(
        max_length=200, required=False, widget=UnfoldAdminTextInputWidget, help_text="Optional; it is kept in the audit log."
    )
