"""A task in a worker: a periodic job runs once it is due, and its run is noted. An outage of PostgreSQL fails no task."""

from collections.abc import Callable
from contextlib import suppress

import structlog
from django.db import DatabaseError, InterfaceError

from common import outages
from common.outages import POSTGRESQL
from fleet.jobs import runs, schedule
from fleet.jobs.schedule import Job

log = structlog.get_logger(__name__)


def carry_out(task: str, work: Callable[[], object]) -> None:
    """Do the work of the Celery task `task`; of a periodic job only if it is due. Raises what `work` raises.

    While PostgreSQL is away, a task is dropped, and the outage is logged once. Nothing is lost: a job is due until it was begun,
    and an operation is sent again.
    """
    job = schedule.of_task(task)
    try:
        if job is None:
            work()
        elif runs.begin(job):
            _run(job, work)
        else:
            log.info("job_not_due", job=job.name)
            return
    except (DatabaseError, InterfaceError) as error:
        if not outages.is_away(error):
            raise
        POSTGRESQL.failed(error)
    else:
        POSTGRESQL.answered()


def _run(job: Job, work: Callable[[], object]) -> None:
    is_done = False
    try:
        work()
        is_done = True
    finally:
        with suppress(DatabaseError, InterfaceError):  # if PostgreSQL is away, `work` has failed for the same reason
            runs.end(job, is_done=is_done)
