"""Suspend, resume and delete products over REST, with an admin key."""

from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response

from audit import actors
from common.bodies import read
from engines import lifecycle
from engines.api.answers import render_deleted, render_suspended, render_suspension
from engines.api.bodies import NewSuspension, Nothing, Resumption
from policy import products
from policy.api import operator_view


@operator_view("POST")
def suspend(request: Request, product_id: UUID) -> Response:
    """POST /products/{product_id}/suspend: refuse admits, provisions and starts from the next request on."""
    done = lifecycle.suspend_product(product_id, by=actors.ADMIN, **read(request, NewSuspension))
    return Response(render_suspended(done.product, stopping=done.stopping, busy=done.busy))


@operator_view("POST")
def resume(request: Request, product_id: UUID) -> Response:
    """POST /products/{product_id}/resume: end the suspension; no engine is started."""
    return Response(render_suspension(products.resume(product_id, by=actors.ADMIN, **read(request, Resumption))))


@operator_view("DELETE")
def product(request: Request, product_id: UUID) -> Response:
    """DELETE /products/{product_id}: refused while the product has living engines."""
    read(request, Nothing)
    lifecycle.delete_product(product_id, by=actors.ADMIN)
    return Response(render_deleted(product_id))
