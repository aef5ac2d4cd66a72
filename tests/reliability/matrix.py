"""Eight engines, one for each verb, brought to the state in which the verb can be asked for, and then all asked at once.

Engines are held in the middle of their verbs until `release`: boots answer that they are starting, a last turn goes on. No two of
them end at the same moment: Docker 20.10 may lock up when containers of one network do (docs/operations.md).
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import requests

from audit import actors
from engines import lifecycle
from engines.addresses import url
from engines.models import Engine, Kind, Operation
from policy import crypto, environments
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
SLOW = (Kind.START, Kind.WAKE, Kind.RESTART, Kind.ROTATE_KEY)  # boots of an engine that can be told before how to boot
BUSY = (Kind.STOP, Kind.SLEEP, Kind.DESTROY)
PROVISION_S = "6"  # a new engine boots for so long: nobody can tell it anything
APART_S = 0.5  # between the ends of two engines
TRIES, TRY_AGAIN_S = 3, 0.2
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
    """An engine for each verb but provision, in the state that the verb starts from. Only the boots of the verbs are slow."""
    kinds = [kind for kind in Kind if kind != Kind.PROVISION]
    with ThreadPoolExecutor(len(kinds)) as pool:
        answers = list(
            pool.map(lambda kind: stack.call("POST", "/engines/provision", product.key, {"user_id": kind.value}), kinds)
        )
    assert [answer.status_code for answer in answers] == [200] * len(kinds), [answer.text for answer in answers]
    for kind in SLOW:
        order_fault(*reach(lifecycle.find(product, kind.value)), mode="slow", boots=1)
    for kind, verb in BEFORE.items():
        operation = verb(lifecycle.find(product, kind.value), by=STAFF)
        waiting.until(partial(ended, operation), 30, f"{operation.kind} has ended")
    environments.replace(product.pk, {"DEMO_BOOT_DELAY_S": PROVISION_S}, by=STAFF)


def begin(stack: Stack, product, pool: ThreadPoolExecutor) -> list[Case]:
    """Ask for all eight verbs, the provision last, and return when each is in its middle."""
    for kind in BUSY:
        order_fault(*reach(lifecycle.find(product, kind.value)), mode="busy")
    held = {kind: pool.submit(partial(ask, stack, product, kind)) for kind in REST if kind != Kind.PROVISION}
    lifecycle.sleep(lifecycle.find(product, "sleep"), by=STAFF)
    lifecycle.restart(lifecycle.find(product, "restart"), by=STAFF)
    for kind in (*SLOW, *BUSY):
        waiting.until(partial(in_the_middle, kind), 30, f"{kind} is in its middle")
    answers = held | {Kind.PROVISION: pool.submit(partial(ask, stack, product, Kind.PROVISION))}
    return [
        Case(kind, waiting.until(partial(in_the_middle, kind), 30, f"{kind} is in its middle"), answers.get(kind))
        for kind in Kind
    ]


def ask(stack: Stack, product, kind: Kind) -> requests.Response:
    """The verb as a product asks for it."""
    return stack.call(*REST[kind], product.key, BODIES.get(kind))


def holds(cases: list[Case]) -> list[tuple[str, str]]:
    """Address and key of each engine that is held, for `release` once the registry may be away."""
    return [reach(case.engine) for case in cases if case.kind != Kind.PROVISION]


def release(held: list[tuple[str, str]]) -> None:
    """Let the held engines go on, one after the other, those of them that are still there.

    A single connection that fails does not say that an engine is gone: the fault may have met the connection.
    """
    for address, key in held:
        for _ in range(TRIES):
            with suppress(requests.ConnectionError):
                order_fault(address, key, mode="none")
                break
            pause(TRY_AGAIN_S)
        pause(APART_S)


def pause(seconds: float) -> None:
    since = waiting.now()
    waiting.until(partial(waiting.passed, since, seconds), seconds + 5)


def in_the_middle(kind: Kind) -> Operation | None:
    operation = Operation.objects.filter(kind=kind, engine__user_id=kind.value, finished_at=None).first()
    return operation if operation and any(step["step"] == MIDDLE[kind] for step in operation.steps) else None


def ended(operation: Operation) -> bool:
    return Operation.objects.filter(pk=operation.pk).exclude(finished_at=None).exists()


def reach(engine: Engine) -> tuple[str, str]:
    """The engine's address, and the key that its newest incarnation takes."""
    return url(engine), crypto.decrypt(engine.pending_key_ciphertext or engine.key_ciphertext)


def order_fault(address: str, key: str, **fault: Any) -> None:
    """Have the engine make trouble, as `engines.demo.faults` says."""
    requests.post(address + "/faults", json=fault, headers={"X-Engine-Key": key}, timeout=5).raise_for_status()
