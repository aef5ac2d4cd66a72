"""The list of periodic jobs: the name of each, the task that does it, and how often."""

from dataclasses import dataclass

from common.settings import settings


@dataclass(frozen=True)
class Job:
    """A job with the name of its Celery task, which no other job has. A run begins `every_s` seconds after the run before."""

    name: str
    task: str
    every_s: float


def all_jobs() -> tuple[Job, ...]:
    """Every job of this version, with the intervals of this process's settings."""
    env = settings.ENV
    return (
        Job("dispatch-operations", "engines.tasks.dispatch", min(5.0, env.resend_after_s / 2)),
        Job("probe-due-engines", "engines.tasks.probe_due", min(5.0, env.health_check_interval_s / 2)),
        Job("restart-due-engines", "engines.tasks.restart_due", min(5.0, env.restart_backoff_base_s)),
        Job("check-host", "engines.tasks.check_host", 5.0),
        Job("forget-idempotency-keys", "engines.tasks.forget_idempotency_keys", 600.0),
        Job("write-refusals", "policy.tasks.write_refusals", 5.0),
        Job("end-overrides", "policy.tasks.end_overrides", 15.0),
        Job("reconcile", "engines.tasks.sweep", 30.0),
        Job("remove-forgotten-engines", "engines.tasks.remove_forgotten", 5.0),
        Job("measure-disk", "engines.tasks.measure_disk", min(15.0, env.disk_check_interval_s / 2)),
        Job("confine-engines", "engines.tasks.confine", 3.0),  # a changed rule `egress` holds within 10 s
        Job("stop-suspended-engines", "engines.tasks.stop_suspended", 10.0),
        Job("make-partitions", "audit.tasks.make_partitions", 3600.0),
        Job("prune-environments", "engines.tasks.prune_environments", 3600.0),
        Job("count-rows", "audit.tasks.count", 60.0),
        Job("sum-rows", "audit.tasks.sum_rows", 600.0),
        Job("prune-history", "audit.tasks.prune", 6 * 3600.0),
    )


def of_task(task: str) -> Job | None:
    """The job that the Celery task of this name does; None for the other tasks."""
    return next((job for job in all_jobs() if job.task == task), None)
