"""Health: probes the engines that are due, judges the results, and schedules restarts."""

from engines.health.loop import probe_due, restart_due
from engines.health.probes import Prober, Result

__all__ = ["Prober", "Result", "probe_due", "restart_due"]
