"""Log and registry compared: `manage.py audit_check`."""

from fleet.consistency.check import Checked, check
from fleet.consistency.checkpoints import Checkpoint, NoCheckpoint, find as find_checkpoint
from fleet.consistency.subjects import SHOWN, Disagreement

__all__ = ["SHOWN", "Checked", "Checkpoint", "Disagreement", "NoCheckpoint", "check", "find_checkpoint"]
