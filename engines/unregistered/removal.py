"""Removes unregistered engines with their data, each at the word of a person.

The wish is a row before anything is removed: after a crash, the next run removes what is left, and writes the audit row.
"""

from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models.functions import Now

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from common import context
from common.context import Call
from engines import backends
from engines.backends.base import BackendError, BackendUnavailable
from engines.models import UnregisteredEngine
from engines.unregistered.adoption import lock
from policy import products

log = structlog.get_logger(__name__)


@transaction.atomic
def forget(engine_id: UUID, *, by: Actor, reason: str = "") -> None:
    """Ask for the removal of the engine with its data, which cannot be taken back. Raises NotUnregistered, RemovalAsked."""
    found = lock(engine_id)
    found.asked_at, found.asked_by, found.reason, found.call = Now(), by, reason, _stored(context.current())
    found.save(update_fields=["asked_at", "asked_by", "reason", "call"])


def remove_forgotten() -> int:
    """Remove the engines whose removal was asked for; returns how many were removed.

    An engine that has been registered since is left alone: then a newer backup of the database was restored.
    """
    return sum(_remove(each) for each in UnregisteredEngine.objects.present().exclude(asked_at=None))


def _remove(engine: UnregisteredEngine) -> bool:
    try:
        backends.get().remove(engine.pk)
    except BackendUnavailable:
        raise
    except BackendError as error:
        log.warning("not_removed", engine_id=str(engine.pk), code=error.code, error=str(error))
        return False
    with context.of_call(_call(engine)), transaction.atomic():
        if not UnregisteredEngine.objects.filter(pk=engine.pk).delete()[0]:  # another worker was faster
            return False
        _record(engine)
    log.warning("unregistered_engine_removed", engine_id=str(engine.pk), by=engine.asked_by)
    return True


def _record(engine: UnregisteredEngine) -> None:
    product = next(iter(products.with_slugs([engine.product_slug])), None)
    about = trail.Subject(
        product_id=product.pk if product else None,
        product_slug=engine.product_slug or None,
        user_id=engine.user_id or None,
        engine_id=engine.pk,
    )
    metadata = {"volume": engine.has_volume, "runs": engine.runs, **({"reason": engine.reason} if engine.reason else {})}
    trail.record(Action.ENGINE_FORGOTTEN, about, by=Actor(engine.asked_by), metadata=metadata)


def _stored(call: Call) -> dict[str, Any]:
    return {name: None if value is None else str(value) for name, value in call._asdict().items()}


def _call(engine: UnregisteredEngine) -> Call:
    kept = dict(engine.call or {})
    ids = {name: UUID(kept[name]) for name in ("call_id", "key_id") if kept.get(name)}
    return Call(**{**kept, **ids})
