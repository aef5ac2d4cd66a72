"""The Celery tasks: a task takes ids, makes a single call, and may run twice.

A message of a periodic task is dropped unless the job is due (`fleet.jobs`).

Whoever reaches Valkey can send a task any arguments. Of an argument that is not what the task takes, only a log line remains.
"""

import structlog
from celery import shared_task

from common import uuids
from engines import disk, environments, health, lifecycle, operations, reconcile, unregistered, worker
from policy import idempotency

log = structlog.get_logger(__name__)


@shared_task(ignore_result=True)
def run_operation(operation_id: str) -> None:
    if (wanted := uuids.parse(operation_id)) is None:
        log.warning("message_dropped", task="run_operation")
    else:
        worker.run(wanted)


@shared_task(ignore_result=True)
def dispatch() -> None:
    operations.dispatch()


@shared_task(ignore_result=True)
def probe_due() -> None:
    health.probe_due()


@shared_task(ignore_result=True)
def restart_due() -> None:
    health.restart_due()


@shared_task(ignore_result=True)
def forget_idempotency_keys() -> None:
    idempotency.purge()


@shared_task(ignore_result=True)
def read_logs(engine_id: str, tail: int, token: str, asked_at: float | None = None) -> None:
    engine, answer_to = uuids.parse(engine_id), uuids.parse(token)
    if engine is None or answer_to is None or not isinstance(tail, int) or not isinstance(asked_at, float | None):
        log.warning("message_dropped", task="read_logs")
    else:
        worker.hand_over(engine, tail, answer_to, asked_at)


@shared_task(ignore_result=True)
def check_host() -> None:
    reconcile.host_is_settled()


@shared_task(ignore_result=True)
def sweep() -> None:
    reconcile.sweep()


@shared_task(ignore_result=True)
def remove_forgotten() -> None:
    unregistered.remove_forgotten()


@shared_task(ignore_result=True)
def measure_disk() -> None:
    disk.sweep()


@shared_task(ignore_result=True)
def confine() -> None:
    reconcile.confine()


@shared_task(ignore_result=True)
def stop_suspended() -> None:
    lifecycle.stop_suspended()


@shared_task(ignore_result=True)
def prune_environments() -> None:
    environments.prune()
