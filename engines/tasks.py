"""The Celery tasks: a task takes ids, makes a single call, and may run twice. Only periodic tasks and `read_logs` expire."""

from uuid import UUID

from celery import shared_task

from engines import disk, environments, health, lifecycle, operations, reconcile, worker
from policy import idempotency


@shared_task(ignore_result=True)
def run_operation(operation_id: str) -> None:
    worker.run(UUID(operation_id))


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
def read_logs(engine_id: str, tail: int, token: str) -> None:
    worker.hand_over(UUID(engine_id), tail, token)


@shared_task(ignore_result=True)
def check_host() -> None:
    reconcile.host_is_settled()


@shared_task(ignore_result=True)
def sweep() -> None:
    reconcile.sweep()


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
