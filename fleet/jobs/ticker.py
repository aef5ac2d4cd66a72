"""Beat: sends the periodic jobs that are due, and says which are late, and when the database is another deployment's."""

import time
from collections.abc import Sequence
from threading import Event

import redis
import structlog
from celery import current_app
from django.db import DatabaseError, InterfaceError, connection
from kombu.exceptions import OperationalError

from common import times
from common.outages import POSTGRESQL, VALKEY
from engines import deployment
from fleet.jobs import runs
from fleet.jobs.schedule import Job

LEAST_S, MOST_S = 0.05, 1.0  # between two looks at the table; at most, because another process may have changed the table
LOOK_S = 10.0  # between two looks for jobs that are late
log = structlog.get_logger(__name__)


def tick(stopping: Event) -> None:
    """Send the jobs that are due, until `stopping` is set. Any number of processes may do so."""
    lateness = _Lateness()
    log.info("beat_ready")
    while not stopping.is_set():
        stopping.wait(_look(lateness))


def _look(lateness: "_Lateness") -> float:
    """Send what is due; returns the seconds until the next look."""
    try:
        unsent = _send(runs.take_due())
        if unsent:
            runs.give_back(unsent)
            lateness.wait()
            return MOST_S
        lateness.look()
        seconds = runs.next_s()
    except (DatabaseError, InterfaceError) as error:  # without the database nothing is due; the loop has to go on
        POSTGRESQL.failed(error)
        lateness.wait()
        return MOST_S
    finally:
        connection.close()
    POSTGRESQL.answered()
    return MOST_S if seconds is None else min(max(seconds, LEAST_S), MOST_S)


def _send(jobs: Sequence[Job]) -> Sequence[Job]:
    """Send the jobs' tasks. If the broker does not answer, return the jobs that were not sent; each try may take seconds."""
    for number, job in enumerate(jobs):
        try:
            current_app.send_task(job.task, retry=False, ignore_result=True)
        except (OperationalError, redis.RedisError, OSError) as error:
            VALKEY.failed(error)
            return jobs[number:]
        VALKEY.answered()
    return []


class _Lateness:
    """Logs each job once when it is late, and once when it is done again. Looks every LOOK_S."""

    def __init__(self) -> None:
        self._late: set[str] = set()
        self._ownership = _Ownership()
        self.wait()

    def wait(self) -> None:
        """Look no earlier than in LOOK_S: after an outage, and after the start, the jobs first get the time to run."""
        self._next = time.monotonic() + LOOK_S

    def look(self) -> None:
        """Log what has changed since the last look. Raises DatabaseError."""
        if time.monotonic() < self._next:
            return
        self.wait()
        self._ownership.look()
        found = {late.name: late for late in runs.late()}
        for name in found.keys() - self._late:
            log.warning("job_late", job=name, done_at=times.iso(found[name].done_at))
        for name in self._late - found.keys():
            log.warning("job_done_again", job=name)
        self._late = set(found)


class _Ownership:
    """Logs once when the database is another deployment's, as after a failover to a copy, and once when it is ours again."""

    def __init__(self) -> None:
        self._fault = ""

    def look(self) -> None:
        """Log what has changed since the last look. Raises DatabaseError."""
        fault = deployment.find(connection).fault
        if fault and not self._fault:
            log.error("database_not_ours", fault=fault)
        elif self._fault and not fault:
            log.warning("database_ours_again")
        self._fault = fault
