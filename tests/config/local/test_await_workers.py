"""A queue counts as taken once a worker has taken a message of the queue."""

import contextlib

import pytest

from common import valkey
from config import tasks
from config.local.await_workers import await_workers
from tests import waiting
from tests.stack import Stack

TOKEN = "6d1b0c52-6a0e-4f5c-9d0e-0a6a5a0b7c11"
QUEUES = {"wake", "lifecycle", "background", "health", "keeper"}


@pytest.mark.parametrize("edition", ["small", "full"])
def test_every_queue_is_silent_before_a_worker_runs(db, edition):
    assert await_workers(edition, wait_s=0.3) == QUEUES


def test_queue_is_silent_until_its_worker_runs(db):
    with contextlib.closing(Stack("small")) as stack:
        stack.start("keeper")
        waiting.until(lambda: "keeper" not in await_workers("small", wait_s=0.3), 20, "the keeper has taken a message")
        assert await_workers("small", wait_s=0.3) == QUEUES - {"keeper"}
        stack.start("worker")
        assert await_workers("small", wait_s=20) == set()


@pytest.mark.parametrize(("token", "queue"), [("logs", "keeper"), (["logs"], "keeper"), (TOKEN, "x" * 100_000), (TOKEN, 1)])
def test_sign_of_a_stranger_leaves_nothing(token, queue):
    before = valkey.client().dbsize()
    tasks.leave_sign(token, queue)
    assert valkey.client().dbsize() == before
