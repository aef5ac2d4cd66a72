"""The keeper's work, which needs the owner's database role."""

from celery import shared_task

from audit import counts, partitions, retention, sums


@shared_task(ignore_result=True)
def make_partitions() -> None:
    partitions.make_ahead()


@shared_task(ignore_result=True)
def count() -> None:
    counts.count()


@shared_task(ignore_result=True)
def prune() -> None:
    retention.prune()


@shared_task(ignore_result=True)
def sum_rows() -> None:
    sums.keep()
