"""Waits until workers have taken a message of every queue: until then, a provision would also wait for the start of a worker."""

import os
import sys
import time
from collections.abc import Collection
from uuid import UUID, uuid4

import django
import redis
from celery.exceptions import OperationalError

from common.editions import Edition
from config.processes import edition, of_kind

WAIT_S = 180.0  # a worker whose threads are all at work takes the message after the first boot that ends
RESEND_S = 10.0  # a worker that is killed loses the messages in its hands
LOOK_S = 0.1


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    if silent := await_workers(edition()):
        sys.exit(f"Error: after {WAIT_S:.0f} s, no worker takes the messages of {', '.join(sorted(silent))}")


def await_workers(edition: Edition, wait_s: float = WAIT_S) -> Collection[str]:
    """Return the queues of the edition of which no message was taken within `wait_s` seconds: none, usually at once."""
    from config import tasks

    token, began, sent_at = uuid4(), time.monotonic(), float("-inf")
    silent = tasks.queues(process.name for process in of_kind("app", edition=edition))
    while silent and time.monotonic() - began < wait_s:
        if time.monotonic() - sent_at > RESEND_S:
            sent_at = time.monotonic()
            _send(token, silent)
        time.sleep(LOOK_S)
        silent -= _signs(token)
    return silent


def _send(token: UUID, queues: Collection[str]) -> None:
    from config import tasks

    for queue in queues:
        try:
            tasks.leave_sign.apply_async(args=(str(token), queue), queue=queue)
        except OperationalError as error:
            print(f"{queue}: {error}", file=sys.stderr)


def _signs(token: UUID) -> set[str]:
    from config import tasks

    try:
        return tasks.signs(token)
    except redis.RedisError:
        return set()  # Valkey is away: look again


if __name__ == "__main__":
    main()
