"""Open the operation that a request wants, once per `Idempotency-Key`, in the name of the calling product."""

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


def request_verb(request: Request, user_id: str, verb: Callable[..., Operation]) -> Operation:
    """Open or join an operation on the product's engine; `verb` is a function of `lifecycle`, such as `start`."""
    read(request, Nothing)
    product = product_of(request)
    by = actors.product(product.slug)
    return once(request, lambda: verb(lifecycle.find(product, user_id), by=by))


def once(request: Request, intent: Callable[[], Operation]) -> Operation:
    """Call `intent` once per `Idempotency-Key`; a replay returns the operation of the first call."""
    return idempotency.once(
        request,
        str(product_of(request).pk),
        intent,
        keep=lambda operation: Kept(operation_id=operation.pk),
        replay=lambda kept: operations.get(product_of(request), kept.named()),
        refusals=(EngineError, PolicyError),
    )
