"""An intent in a request: stated once per `Idempotency-Key`, in the name of the product that calls."""

from collections.abc import Callable

from rest_framework.request import Request

from audit import actors
from common.bodies import read
from engines import lifecycle, operations
from engines.api.bodies import Nothing
from engines.api.callers import product_of
from engines.errors import EngineError
from engines.models import Operation
from policy import idempotency
from policy.errors import PolicyError
from policy.idempotency import Kept


def ask(request: Request, user_id: str, verb: Callable[..., Operation]) -> Operation:
    """Open (or join) the operation of a verb without parameters, for the product's engine."""
    read(request, Nothing)
    product = product_of(request)
    by = actors.product(product.slug)
    return once(request, lambda: verb(lifecycle.find(product, user_id), by=by))


def once(request: Request, intent: Callable[[], Operation]) -> Operation:
    """State the intent, once per `Idempotency-Key`; a replay gets the operation that the first call opened."""
    return idempotency.once(
        request,
        str(product_of(request).pk),
        intent,
        keep=lambda operation: Kept(operation_id=operation.pk),
        replay=lambda kept: operations.get(product_of(request), kept.named()),
        refusals=(EngineError, PolicyError),
    )
