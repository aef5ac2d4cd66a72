"""Registers an engine again that only the runtime knows, such as an engine that is newer than a restored database."""

import secrets
from dataclasses import dataclass, replace
from uuid import UUID

from django.db import transaction

from audit import trail
from audit.actions import Action
from audit.actors import Actor
from common.settings import settings
from engines import hosts, identifiers
from engines.backends.base import Ref
from engines.errors import EngineAlreadyExists
from engines.lifecycle import moves
from engines.lifecycle.provision import resources
from engines.lifecycle.verbs import TOKEN_BYTES
from engines.models import Engine, Host, Status
from policy import decisions, overrides, products, rules
from policy.models import Product


@dataclass(frozen=True)
class Adoptee:
    """What the runtime says of the engine.

    `image` may be empty: the product's usual image is taken. `incarnation` is the highest number of its instances, 0 without any.
    `runs`: an instance runs.
    """

    engine_id: UUID
    user_id: str
    image: str
    incarnation: int
    runs: bool


@transaction.atomic
def adopt(product: Product, found: Adoptee, *, by: Actor, reason: str = "") -> Engine:
    """Insert the engine, stopped, with its old id, and thus with its volume. Returns the engine.

    The key is new, because only its hash is left. So is the incarnation: the next start makes a new instance on the volume, and
    ends the instances that there are. Raises InvalidUserId, EngineAlreadyExists, QuotaExceeded, PortExhaustion.
    """
    user_id = identifiers.check_user_id(found.user_id)
    product = products.lock(product.pk)
    host = hosts.local()
    living = Engine.objects.living().filter(product=product)
    if living.filter(user_id=user_id).exists():
        raise EngineAlreadyExists("The product has an engine for this user already. Keep that one, or destroy it first.")
    decisions.check([decisions.max_engines(overrides.in_force(product), living.count())])
    engine = _insert(product, host, replace(found, user_id=user_id))
    _record(engine, found, by=by, reason=reason)
    return engine


def _insert(product: Product, host: Host, found: Adoptee) -> Engine:
    incarnation = found.incarnation + 1
    return Engine.objects.create(
        pk=found.engine_id,
        user_id=found.user_id,
        status=Status.STOPPED,
        engine_version=found.image or rules.choose_image(overrides.in_force(product), "", settings.ENV.engine_image),
        incarnation=incarnation,
        incarnations=incarnation,
        incarnation_mark=Ref(found.engine_id, incarnation, secrets.token_hex(TOKEN_BYTES)).mark,
        **resources(product, host),
    )


def _record(engine: Engine, found: Adoptee, *, by: Actor, reason: str) -> None:
    registered = replace(moves.subject(engine), to_status=engine.status)
    metadata = {"image": engine.engine_version, "port": engine.port, "incarnation": engine.incarnation, "runs": found.runs}
    trail.record(Action.ENGINE_ADOPTED, registered, by=by, metadata={**metadata, **({"reason": reason} if reason else {})})
    engine.refresh_from_db(fields=["created_at"])
