"""When periodic jobs are due, and their runs. The table `jobs_job` decides, by the database's clock.

1. Beat sends the tasks of the jobs that are due (`take_due`).
2. A worker that gets a task begins the job (`begin`), unless another has begun it within the interval.
3. The worker notes the end (`end`). A run without an end is begun again after UNENDED_S, if the interval is longer.

So a message only asks. Any number of beats and any number of copies of a message make one run per interval, an old message makes
none, and neither the clock nor the files of a process matter. A message that is lost, because beat died before it was sent or
Valkey was emptied, delays a job by 30 s at most: a job that no worker begins is sent again. In a database of another deployment,
as after a failover to a copy, nothing is due.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

from engines import deployment
from fleet.jobs.schedule import Job, all_jobs

AGAIN_S = 30.0  # longest first pause until a job that no worker has begun is sent again; each further pause is twice as long
AGAIN_MOST_S = 60.0  # longest pause of a job that runs more often: without workers, few messages gather in the queues
UNENDED_S = 600.0  # a run that has not ended after this time counts as dead: its worker may have been killed
LATE_S = 60.0  # a job is late when it has not been done for two intervals and LATE_S

_WANTED = "wanted AS MATERIALIZED (SELECT * FROM unnest(%(names)s::text[], %(every)s::float8[]) w(name, every_s))"
"""SQL: the jobs of this process's version, with the intervals of this process's settings."""

# A time in the future was written before the clock was set back, and counts as none. -infinity: at once.
# A run that lasts longer than UNENDED_S may meet a second run: a second run of any job does no harm (docs/architecture.md).
_DUE_AT = f"""CASE WHEN j.started_at <= clock_timestamp()
    THEN j.started_at + make_interval(secs => CASE WHEN j.ended_at >= j.started_at THEN w.every_s
                                                   ELSE least(w.every_s, {UNENDED_S}) END)
    ELSE '-infinity' END"""
"""SQL: when the job `j` is due."""

_SEND_AT = f"""greatest({_DUE_AT}, CASE WHEN j.unstarted > 0 AND j.sent_at <= clock_timestamp()
    THEN j.sent_at + make_interval(secs => least(least(w.every_s, {AGAIN_S}) * power(2, least(j.unstarted - 1, 30)),
                                                 greatest(w.every_s, {AGAIN_MOST_S})))
    ELSE '-infinity' END)"""
"""SQL: when the job `j` is to be sent: once it is due, and after a pause if it was sent and no worker has begun it."""


def add() -> None:
    """Give every new job its row; the job is due at once. The rows of jobs that other versions have stay."""
    with connection.cursor() as cursor:
        cursor.execute(f"WITH {_WANTED} INSERT INTO jobs_job (name) SELECT name FROM wanted ON CONFLICT DO NOTHING", _params())


def take_due() -> list[Job]:
    """The jobs that the caller has to send now. Each is given to one caller, also when several ask at once."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH {_WANTED}, due AS (
                SELECT j.name FROM jobs_job j JOIN wanted w ON w.name = j.name
                WHERE {_SEND_AT} <= clock_timestamp() AND {deployment.IS_OURS}
                -- A locked row is being taken by another beat, or begun by a worker.
                FOR NO KEY UPDATE OF j SKIP LOCKED)
            UPDATE jobs_job j SET sent_at = clock_timestamp(), unstarted = unstarted + 1
            FROM due WHERE j.name = due.name RETURNING j.name
            """,
            _params(),
        )
        taken = {name for (name,) in cursor.fetchall()}
    return [job for job in all_jobs() if job.name in taken]


def give_back(jobs: Iterable[Job]) -> None:
    """Note that the jobs could not be sent: they are to be sent as soon as the broker answers, without a pause."""
    with connection.cursor() as cursor:
        names = [job.name for job in jobs]
        cursor.execute("UPDATE jobs_job SET sent_at = NULL, unstarted = 0 WHERE name = ANY(%s)", [names])


def next_s() -> float | None:
    """Seconds until the next job is to be sent, not below 0; None without any job, or in a database of another deployment."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH {_WANTED}
            SELECT CASE WHEN {deployment.IS_OURS}
                THEN extract(epoch FROM greatest(min({_SEND_AT}), clock_timestamp()) - clock_timestamp())::float8 END
            FROM jobs_job j JOIN wanted w ON w.name = j.name
            """,
            _params(),
        )
        seconds = cursor.fetchone()[0]
    return None if seconds is None else max(0.0, float(seconds))


def begin(job: Job) -> bool:
    """Begin a run if the job is due, and return whether it was."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH {_WANTED}
            UPDATE jobs_job j SET started_at = clock_timestamp(), unstarted = 0
            FROM wanted w WHERE j.name = w.name AND {_DUE_AT} <= clock_timestamp() AND {deployment.IS_OURS}
            """,
            _params([job]),
        )
        return bool(cursor.rowcount)


def end(job: Job, *, is_done: bool) -> None:
    """Note the end of a run."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE jobs_job SET ended_at = statement_timestamp(), outcome = %s,"
            " done_at = CASE WHEN %s THEN statement_timestamp() ELSE done_at END WHERE name = %s",
            ["done" if is_done else "failed", is_done, job.name],
        )


@dataclass(frozen=True)
class Late:
    """A job that is late, and when it was last done: None for never."""

    name: str
    done_at: datetime | None


def late() -> list[Late]:
    """The jobs that have not been done for two intervals and LATE_S. A job that nobody has added counts as late."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH {_WANTED}
            SELECT w.name, j.done_at FROM wanted w LEFT JOIN jobs_job j ON j.name = w.name
            WHERE j.name IS NULL
               OR coalesce(j.done_at, j.added_at) + make_interval(secs => 2 * w.every_s + {LATE_S}) < clock_timestamp()
            ORDER BY w.name
            """,
            _params(),
        )
        return [Late(*row) for row in cursor.fetchall()]


def _params(jobs: Sequence[Job] = ()) -> Mapping[str, Any]:
    """The parameters of `_WANTED`, for the given jobs or for all."""
    wanted = jobs or all_jobs()
    return {"names": [job.name for job in wanted], "every": [job.every_s for job in wanted], **deployment.params()}
