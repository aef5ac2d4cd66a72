"""The two editions of a deployment: `small` has a single worker for everything, `full` has a process per queue."""

from typing import Literal

Edition = Literal["small", "full"]
EDITIONS: tuple[Edition, ...] = ("small", "full")
USUAL: Edition = "small"  # the default of ORCH_PROCESSES
