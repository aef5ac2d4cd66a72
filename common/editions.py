"""The two editions of a deployment: `small` has one worker for everything, `full` has a process for each queue."""

from typing import Literal

Edition = Literal["small", "full"]
EDITIONS: tuple[Edition, ...] = ("small", "full")
USUAL: Edition = "small"  # where ORCH_PROCESSES is not set
