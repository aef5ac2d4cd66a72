"""Eight engines, one for each verb, brought to the state in which the verb can be asked for, and then all asked at once.

No two of them end at the same moment: Docker 20.10 may lock up when containers of one network do (docs/operations.md).
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import requests

from audit import actors
from engines import lifecycle
from engines.addresses import url
from engines.models import Engine, Kind, Operation
from policy import secrets
from tests import waiting
from tests.stack import Stack

STAFF = actors.staff("rita")
BOOTS = (Kind.PROVISION, Kind.START, Kind.WAKE, Kind.RESTART, Kind.ROTATE_KEY)
MIDDLE = {kind: "waiting_for_health" if kind in BOOTS else "stopping" for kind in Kind}
BEFORE: dict[Kind, Callable[..., Operation]] = {Kind.START: lifecycle.stop, Kind.WAKE: lifecycle.sleep}
REST = {
    Kind.PROVISION: ("POST", "/engines/provision"),
    Kind.START: ("POST", "/engines/start/start"),
    Kind.STOP: ("POST", "/engines/stop/stop"),
    Kind.WAKE: ("POST", "/engines/wake/admit"),
    Kind.ROTATE_KEY: ("POST", "/engines/rotate_key/rotate-key"),
    Kind.DESTROY: ("DELETE", "/engines/destroy"),
}
TURNS_S = {Kind.STOP: 8, Kind.SLEEP: 9, Kind.DESTROY: 10}  # an engine in the middle of one does not end before
BODIES = {Kind.PROVISION: {"user_id": "provision"}, Kind.WAKE: {"auto_wake": True}}


@dataclass
class Case:
    """A verb under way on an engine; the user's id is the verb's name."""

    kind: Kind
    operation: Operation
    answer: Future[requests.Response] | None

    @property
    def engine(self) -> Engine:
        return Engine.objects.select_related("product").get(pk=self.operation.engine_id)


def prepare(stack: Stack, product) -> None:
    """An engine for each verb but provision, in the state that the verb starts from."""
    kinds = [kind for kind in Kind if kind != Kind.PROVISION]
    with ThreadPoolExecutor(len(kinds)) as pool:
        answers = list(
            pool.map(lambda kind: stack.call("POST", "/engines/provision", product.key, {"user_id": kind.value}), kinds)
        )
    assert [answer.status_code for answer in answers] == [200] * len(kinds), [answer.text for answer in answers]
    for kind, verb in BEFORE.items():
        operation = verb(lifecycle.find(product, kind.value), by=STAFF)
        waiting.until(partial(ended, operation), 30, f"{operation.kind} has ended")


def begin(stack: Stack, product, pool: ThreadPoolExecutor) -> list[Case]:
    """Ask for all eight verbs at once, and return when each is in its middle."""
    for kind, seconds in TURNS_S.items():
        make_busy(lifecycle.find(product, kind.value), seconds)
    answers = {kind: pool.submit(partial(stack.call, *REST[kind], product.key, BODIES.get(kind))) for kind in REST}
    lifecycle.sleep(lifecycle.find(product, "sleep"), by=STAFF)
    waiting.until(partial(in_the_middle, Kind.ROTATE_KEY), 30, "the rotation has ended the old one")
    lifecycle.restart(lifecycle.find(product, "restart"), by=STAFF)
    return [
        Case(kind, waiting.until(partial(in_the_middle, kind), 30, f"{kind} is in its middle"), answers.get(kind))
        for kind in Kind
    ]


def in_the_middle(kind: Kind) -> Operation | None:
    operation = Operation.objects.filter(kind=kind, engine__user_id=kind.value, finished_at=None).first()
    return operation if operation and any(step["step"] == MIDDLE[kind] for step in operation.steps) else None


def ended(operation: Operation) -> bool:
    return Operation.objects.filter(pk=operation.pk).exclude(finished_at=None).exists()


def make_busy(engine: Engine, seconds: float) -> None:
    """A turn that keeps the engine from ending for a while."""
    key = secrets.decrypt(engine.key_ciphertext)
    order = {"mode": "busy", "seconds": seconds}
    requests.post(url(engine) + "/faults", json=order, headers={"X-Engine-Key": key}, timeout=5).raise_for_status()
