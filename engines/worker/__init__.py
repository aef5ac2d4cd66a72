"""Carries operations out, and reads engines' logs: next to `reconcile` the only caller of a backend's verbs."""

from engines.worker.logs import hand_over
from engines.worker.renewal import watch
from engines.worker.run import run

__all__ = ["hand_over", "run", "watch"]
