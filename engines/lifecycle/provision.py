"""Promises a new engine: inserts the engine with its key and port, and opens its operation."""

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from django.db import transaction

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from engines import hosts, identifiers, operations
from engines.lifecycle import capacity, moves, plans, refused
from engines.models import Engine, Host, Kind, Operation, Status
from policy import crypto, environments, products
from policy.models import Product


def provision(product: Product, user_id: str, *, by: Actor, engine_version: str = "", auto: bool = False) -> Operation:
    """Promise a new engine for the user; `auto` means: at the request of an admit.

    A call for a user whose engine is being provisioned joins the open provision. Raises InvalidUserId, ImageUnknown,
    EngineAlreadyExists, PortExhaustion, and with a row of the refusal ProductSuspended, ImageDenied, QuotaExceeded,
    CapacityExhausted.
    """
    user_id = identifiers.check_new_user_id(user_id)
    image = identifiers.check_image(engine_version)
    about = trail.Subject(product_id=product.pk, product_slug=product.slug, user_id=user_id)
    denied = Action.ADMIT_DENIED if auto else Action.PROVISION_DENIED
    with refused.recorded(Kind.PROVISION, lambda: about, by=by, denied=denied):
        return _provision(product, user_id, image, by=by, auto=auto)


@transaction.atomic
def _provision(product: Product, user_id: str, asked: str, *, by: Actor, auto: bool) -> Operation:
    product = products.lock(product.pk)
    capacity.lock_host()
    plan = plans.of_provision(product, user_id, asked).checked()
    if plan.joins is not None:
        return plan.joins
    operation_id = uuid4()
    engine = _insert(product, user_id, plan.image, operation_id, by=by, auto=auto)
    return operations.open(engine, Kind.PROVISION, by=by, operation_id=operation_id)


def _insert(product: Product, user_id: str, image: str, operation_id: UUID, *, by: Actor, auto: bool) -> Engine:
    """Insert the engine, with its key and port, and its `provision_requested` row."""
    given = resources(product, hosts.local())
    engine = Engine.objects.create(user_id=user_id, status=Status.PROVISIONING, engine_version=image, **given)
    promised = replace(moves.subject(engine), to_status=engine.status)
    metadata = {"image": image, "port": engine.port, "auto": auto}
    trail.record(Action.PROVISION_REQUESTED, promised, by=by, metadata=metadata, operation_id=operation_id)
    engine.refresh_from_db(fields=["created_at"])
    return engine


def resources(product: Product, host: Host) -> dict[str, Any]:
    """Columns of an engine that is registered now: its place, its sizes and a new key. Raises PortExhaustion."""
    key = crypto.make_key(crypto.ENGINE_PREFIX)
    return {
        "product": product,
        "host": host,
        "port": hosts.pick_port(host),
        "memory_mb": capacity.memory_mb(product),
        "disk_mb": capacity.disk_mb(product),
        "env_version": environments.newest_version(product.pk),
        "key_hash": crypto.hash_key(key),
        "key_ciphertext": crypto.encrypt(key),
    }
