"""Registers an unregistered engine again, with its data."""

from dataclasses import dataclass
from uuid import UUID

from django.db import transaction

from audit.actors import Actor
from engines import lifecycle
from engines.errors import EngineError
from engines.lifecycle import Adoptee
from engines.models import Engine, Operation, UnregisteredEngine
from engines.unregistered.errors import NotUnregistered, OwnerUnknown, RemovalAsked
from policy import products
from policy.errors import PolicyError
from policy.models import Product


@dataclass(frozen=True)
class Adopted:
    """The engine, and its start if an instance of it ran; `refusal` says why it was not started."""

    engine: Engine
    start: Operation | None = None
    refusal: EngineError | PolicyError | None = None


def adopt(engine_id: UUID, *, by: Actor, reason: str = "", product_slug: str = "", user_id: str = "") -> Adopted:
    """Register the engine, `stopped`, and start it if an instance of it runs: the instance still has the old key.

    `product_slug` and `user_id` are for an engine without these labels. Raises NotUnregistered, RemovalAsked, OwnerUnknown,
    EngineAlreadyExists, InvalidUserId, PortExhaustion, QuotaExceeded. Once the engine is registered, a refusal of its start is
    returned: it leaves the engine stopped.
    """
    engine, runs = _register(engine_id, by=by, reason=reason, product_slug=product_slug, user_id=user_id)
    if not runs:
        return Adopted(engine)
    try:
        return Adopted(engine, start=lifecycle.start(engine, by=by, reason=reason))
    except (EngineError, PolicyError) as refusal:
        return Adopted(engine, refusal=refusal)


@transaction.atomic
def _register(engine_id: UUID, *, by: Actor, reason: str, product_slug: str, user_id: str) -> tuple[Engine, bool]:
    found = lock(engine_id)
    product = _product(_agreed("product", found.product_slug, product_slug))
    user_id = _agreed("user", found.user_id, user_id)
    adoptee = Adoptee(found.pk, user_id, found.image, found.incarnation, found.runs)
    engine = lifecycle.adopt(product, adoptee, by=by, reason=reason)
    found.delete()
    return engine, found.runs


def lock(engine_id: UUID) -> UnregisteredEngine:
    """The unregistered engine, locked for the transaction. Raises NotUnregistered, RemovalAsked."""
    found = UnregisteredEngine.objects.present().select_for_update(of=("self",)).filter(pk=engine_id).first()
    if found is None:
        raise NotUnregistered(f"No engine {engine_id} is unregistered: it is registered by now, or the runtime does not have it.")
    if found.asked_at is not None:
        raise RemovalAsked(f"The removal of engine {engine_id} was asked for by {found.asked_by}.")
    return found


def _agreed(what: str, labelled: str, given: str) -> str:
    """The product or user by the label or, without a label, as given. Raises OwnerUnknown."""
    if not labelled and not given:
        raise OwnerUnknown(f"The runtime does not know the engine's {what}: name the {what}.")
    if labelled and given and labelled != given:
        raise OwnerUnknown(f"The engine belongs to another {what} by the runtime's labels; leave the {what} out.")
    return labelled or given


def _product(slug: str) -> Product:
    found = products.with_slugs([slug])
    if not found:
        raise OwnerUnknown(f"No product has the slug {slug}: register it first, under this slug.")
    return found[0]
