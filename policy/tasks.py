"""The Celery tasks of the policy app."""

from celery import shared_task

from policy import overrides, refusals


@shared_task(ignore_result=True)
def write_refusals() -> None:
    refusals.write_due()


@shared_task(ignore_result=True)
def end_overrides() -> None:
    overrides.end_due()
