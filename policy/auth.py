"""Who is calling: a product by its platform key, or the operator by the admin key."""

from typing import TYPE_CHECKING

from django.conf import settings
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from policy import products, secrets
from policy.models import Product

if TYPE_CHECKING:
    from rest_framework.views import APIView  # at run time it imports this module, which settings name


class InvalidPlatformKey(AuthenticationFailed):
    default_code = "INVALID_PLATFORM_KEY"
    default_detail = "X-Platform-Key is missing, unknown or revoked. Send a living key of the product."


class InvalidAdminKey(AuthenticationFailed):
    default_code = "INVALID_ADMIN_KEY"
    default_detail = "X-Admin-Key is missing or wrong."


class PlatformKeyAuthentication(BaseAuthentication):
    """`request.auth` is the Product whose key came in `X-Platform-Key`."""

    def authenticate(self, request: Request) -> tuple[None, Product]:
        product = products.authenticate(request.headers.get("X-Platform-Key", ""))
        if product is None:
            raise InvalidPlatformKey
        return None, product

    def authenticate_header(self, request: Request) -> str:
        return "X-Platform-Key"


class AdminKeyAuthentication(BaseAuthentication):
    """`request.auth` is "admin" when the admin key came in `X-Admin-Key`."""

    def authenticate(self, request: Request) -> tuple[None, str]:
        given = request.headers.get("X-Admin-Key", "")
        if not given or not secrets.matches(given, settings.ENV.admin_key):
            raise InvalidAdminKey
        return None, "admin"

    def authenticate_header(self, request: Request) -> str:
        return "X-Admin-Key"


class IsProduct(BasePermission):
    """The caller is a product; its authentication has failed otherwise."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return isinstance(request.auth, Product)


class IsAdmin(BasePermission):
    """The caller holds the admin key."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return request.auth == "admin"
