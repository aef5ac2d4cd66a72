"""Changes of a product together with its engines: suspension, with or without a stop of its engines, and deletion."""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from audit.actors import SYSTEM, Actor
from engines.errors import EngineError, ProductHasEngines
from engines.lifecycle.verbs import stop, stop_in_background
from engines.models import Engine, Operation, Status
from engines.transitions import STARTS
from policy import overrides, products
from policy.models import Product

_BUSY = Operation.objects.open()
_STARTING = _BUSY.filter(kind__in=STARTS)
_SERVES = Q(status=Status.RUNNING) | Q(next_restart_at__isnull=False) | Q(pk__in=_STARTING.values("engine_id"))


@dataclass(frozen=True)
class Suspended:
    """A suspended product, the number of engines being stopped, and the number of engines busy with other operations."""

    product: Product
    stopping: int = 0
    busy: int = 0


def suspend_product(product_id: UUID, reason: str, *, by: Actor, stop_engines: bool = False) -> Suspended:
    """Suspend the product, and with `stop_engines` stop every engine that runs or is about to run.

    An engine with a different open operation is left to the operation, and stopped by `stop_suspended` afterwards. Raises
    ProductNotFound.
    """
    product = products.suspend(product_id, reason, by=by, stop_engines=stop_engines)
    if not stop_engines:
        return Suspended(product)
    serving = Engine.objects.living().filter(_SERVES, product=product).select_related("product")
    stopped = [_stop(engine, product.suspension_reason, stop, by=by) for engine in serving.order_by("pk")]
    return Suspended(product, stopped.count(True), stopped.count(False))


def stop_suspended() -> int:
    """Stop the serving engines of products that are suspended with `stop_engines`; returns how many."""
    wished = Product.objects.living().filter(stops_engines=True, suspended_at__isnull=False)
    serving = Engine.objects.living().filter(_SERVES, product__in=wished).exclude(pk__in=_BUSY.values("engine_id"))
    return sum(_stop_suspended(engine) for engine in serving.order_by("pk"))


@transaction.atomic
def _stop_suspended(engine: Engine) -> bool:
    """Stop the engine, unless its product was resumed meanwhile."""
    product = products.lock(engine.product_id)
    if product.suspended_at is None or not product.stops_engines:
        return False
    return _stop(engine, product.suspension_reason, stop_in_background, by=SYSTEM)


def _stop(engine: Engine, reason: str, verb: Callable[..., Operation], *, by: Actor) -> bool:
    """Request the stop of the engine; False when the stop is refused."""
    try:
        verb(engine, by=by, reason=f"suspended: {reason}")
    except EngineError:
        return False
    return True


@transaction.atomic
def delete_product(product_id: UUID, *, by: Actor) -> None:
    """Delete a product without living engines. A concurrent provision is either counted, or finds no product.

    Raises ProductNotFound, ProductHasEngines.
    """
    product = products.lock(product_id)
    living = Engine.objects.living().filter(product=product).count()
    if living:
        raise ProductHasEngines(living)
    overrides.end_all(product, by=by)
    products.delete(product, by=by)
