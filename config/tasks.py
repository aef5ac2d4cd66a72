"""The one Celery task of the wiring itself: a sign that somebody takes the messages of a queue."""

from collections.abc import Iterable
from uuid import UUID

from celery import shared_task
from django.conf import settings

from common import uuids, valkey

KEPT_S = 60


@shared_task(ignore_result=True)
def leave_sign(token: str, queue: str) -> None:
    """Leave in Valkey, under `token`, that a message of `queue` was taken; anything but a UUID and a queue of ours is dropped."""
    wanted = uuids.parse(token)
    if wanted is None or queue not in list(queues(settings.CONSUMERS)):  # a list: not all that JSON holds can be hashed
        return
    with valkey.client().pipeline() as pipeline:
        pipeline.sadd(_key(wanted), queue)
        pipeline.expire(_key(wanted), KEPT_S)
        pipeline.execute()


def signs(token: UUID) -> set[str]:
    """The queues with a sign under `token`. Raises redis.RedisError."""
    found: set[bytes] = valkey.client().smembers(_key(token))  # type: ignore[assignment]
    return {queue.decode() for queue in found}


def queues(names: Iterable[str]) -> set[str]:
    """The queues of the processes `names`; a process that takes no queue adds none."""
    return {queue for name in names if name in settings.CONSUMERS for queue in settings.CONSUMERS[name][0]}


def _key(token: UUID) -> str:
    return f"signs:{token}"
