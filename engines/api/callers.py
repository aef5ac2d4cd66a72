"""The calling product, found by the platform key of the request: an endpoint for products must read only its data."""

from rest_framework.request import Request

from policy.models import Product


def product_of(request: Request) -> Product:
    """The product calling an endpoint for products."""
    assert isinstance(request.auth, Product)
    return request.auth
