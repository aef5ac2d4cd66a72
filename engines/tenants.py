"""What is done to a product for which its engines matter: suspended, with its engines stopped or not, and deleted."""

from dataclasses import dataclass
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from audit.actors import Actor
from engines import lifecycle
from engines.errors import EngineError, ProductHasEngines
from engines.models import OPEN, Engine, Kind, Operation, Status
from policy import overrides, products
from policy.models import Product

_STARTS = Operation.objects.filter(state__in=OPEN, kind__in=(Kind.PROVISION, Kind.START, Kind.WAKE, Kind.RESTART))
_SERVES = Q(status=Status.RUNNING) | Q(next_restart_at__isnull=False) | Q(pk__in=_STARTS.values("engine_id"))


@dataclass(frozen=True)
class Suspended:
    """A suspended product, how many of its engines are being stopped, and how many are busy with something else."""

    product: Product
    stopping: int = 0
    busy: int = 0


def suspend(product_id: UUID, reason: str, *, by: Actor, stop_engines: bool = False) -> Suspended:
    """Suspend the product, and with `stop_engines` stop every engine that runs or is about to.

    One with another operation under way is left to that: suspend again to stop it then. Raises ProductNotFound.
    """
    product = products.suspend(product_id, reason, by=by)
    if not stop_engines:
        return Suspended(product)
    serving = Engine.objects.filter(_SERVES, product=product, destroyed_at=None).select_related("product")
    stopped = [_stop(engine, product.suspension_reason, by=by) for engine in serving.order_by("pk")]
    return Suspended(product, stopped.count(True), stopped.count(False))


def _stop(engine: Engine, reason: str, *, by: Actor) -> bool:
    try:
        lifecycle.stop(engine, by=by, reason=f"suspended: {reason}")
    except EngineError:
        return False
    return True


@transaction.atomic
def delete(product_id: UUID, *, by: Actor) -> None:
    """Delete a product that has no living engine; a provision at the same moment is either counted, or finds no product.

    Raises ProductNotFound, ProductHasEngines.
    """
    product = products.lock(product_id)
    living = Engine.objects.filter(product=product, destroyed_at=None).count()
    if living:
        raise ProductHasEngines(living)
    overrides.end_all(product, by=by)
    products.delete(product, by=by)
