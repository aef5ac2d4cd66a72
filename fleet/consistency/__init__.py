"""Log and registry compared: `manage.py audit_check`."""

from fleet.consistency.check import SHOWN, Checked, Disagreement, check

__all__ = ["SHOWN", "Checked", "Disagreement", "check"]
