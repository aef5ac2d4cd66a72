"""Who calls: the product whose key came with the request. Every lookup of an endpoint for products starts from it."""

from rest_framework.request import Request

from policy.models import Product


def product_of(request: Request) -> Product:
    """The product that calls an endpoint for products."""
    assert isinstance(request.auth, Product)
    return request.auth
