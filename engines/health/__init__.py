"""Health: which engines are due for a probe, whether they are healthy, and what follows."""

from engines.health.loop import probe_due, restart_due
from engines.health.probes import Prober

__all__ = ["Prober", "probe_due", "restart_due"]
