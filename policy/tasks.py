"""Celery's way in."""

from celery import shared_task

from policy import refusals


@shared_task(ignore_result=True)
def write_refusals() -> None:
    refusals.write_due()
