"""A database that was stored as another deployment's: taken over with its engines, or separated from its original.

No backend is asked: nothing happens to an instance or a volume before the processes start.
"""

from collections.abc import Callable
from typing import Any

from django.db import connection, transaction

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from common.settings import settings
from engines import deployment, lifecycle
from engines.deployment import Found, Identity
from engines.models import Engine, UnregisteredEngine

EVERY = 500  # engines between two reports


class NothingToDo(Exception):
    """The database is this deployment's already."""


class Refused(Exception):
    """The act would be wrong. `str()` says what to do instead."""


def plan_take_over() -> Found:
    """The stored and the present identity of the database, if a take-over is possible. Raises NothingToDo, Refused."""
    found = _find()
    if found.stored and found.stored.name != found.here.name and settings.ENV.engine_backend == "docker" and count():
        raise Refused(
            f"{count()} engines are containers with the label {found.stored.name}, and {found.here.name} would not find them."
            f" Set ORCH_DEPLOYMENT={found.stored.name}; a deployment without engines may take another name."
        )
    return found


def plan_separation() -> Found:
    """The stored and the present identity of the database, if a separation is possible. Raises NothingToDo, Refused."""
    found = _find()
    if found.stored and found.stored.name == found.here.name:
        raise Refused(
            f"ORCH_DEPLOYMENT is {found.here.name}, as for the original: the copy would find the original's containers by this"
            " name. Set another ORCH_DEPLOYMENT, and run the command again."
        )
    return found


def take_over(found: Found, *, by: Actor) -> None:
    """Store that the database is this deployment's, with its engines."""
    _store(found, Action.DEPLOYMENT_TAKEN_OVER, {}, by=by)


def separate(found: Found, *, by: Actor, report: Callable[[int], object] = lambda done: None) -> int:
    """Disown all engines, and store that the database is a deployment of its own. Returns the number of engines.

    Each engine is a transaction of its own, and the deployment the last. So a run that was killed is repeated: until its end, no
    process starts. Notes about unregistered engines go, too, with the wishes to remove some: they are about the original's
    runtime. `report` is called with the number of engines so far.
    """
    living = list(Engine.objects.living().order_by("pk").values_list("pk", flat=True))
    for number, engine_id in enumerate(living, 1):
        lifecycle.disown(engine_id, by=by)
        if number % EVERY == 0:
            report(number)
    UnregisteredEngine.objects.all().delete()
    _store(found, Action.DEPLOYMENT_SEPARATED, {"engines": Engine.objects.filter(disowned=True).count()}, by=by)
    return len(living)


def count() -> int:
    """The number of engines that are not destroyed."""
    return Engine.objects.living().count()


@transaction.atomic
def _store(found: Found, action: Action, metadata: dict[str, Any], *, by: Actor) -> None:
    deployment.store()
    before = {"before": _of_row(found.stored)} if found.stored else {}
    trail.record(action, by=by, metadata={**before, "after": _of_row(found.here), **metadata})


def _of_row(identity: Identity) -> dict[str, str]:
    """As metadata; numbers as text, because a system identifier has more digits than a number of JSON holds everywhere."""
    return {name: str(value) for name, value in identity._asdict().items()}


def _find() -> Found:
    found = deployment.find(connection)
    if not found.fault:
        raise NothingToDo(f"Nothing to do: this database is the one of the deployment {found.here.name}.")
    return found
