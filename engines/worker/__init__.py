"""Carries operations out, and reads engines' logs, by calls of the backend."""

from engines.worker.logs import hand_over
from engines.worker.renewal import watch
from engines.worker.run import run

__all__ = ["hand_over", "run", "watch"]
