"""Periodic jobs: when each is due, by the database's clock, and when it last ran.

`carry_out` runs a task in a worker, `tick` is what beat does, `add` is for `migrate`, and `late` is for whoever watches.
"""

from fleet.jobs.carrying import carry_out
from fleet.jobs.runs import Late, add, late
from fleet.jobs.schedule import all_jobs
from fleet.jobs.ticker import tick

__all__ = ["Late", "add", "all_jobs", "carry_out", "late", "tick"]
