"""Who is calling: a product by its platform key, or the operator by an admin key; and what the key may be used for.

A platform key needs the scope `read` for what only reads and `lifecycle` for all else, unless the endpoint names another
permission of this module.
"""

from typing import TYPE_CHECKING, cast

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from common import context
from common.settings import settings
from policy import admin_keys, crypto, products
from policy.models import AdminKey, PlatformKey, Product, Scope

if TYPE_CHECKING:
    from rest_framework.views import APIView  # at run time it imports this module, which settings name


class InvalidPlatformKey(AuthenticationFailed):
    default_code = "INVALID_PLATFORM_KEY"
    default_detail = "X-Platform-Key is missing, unknown, expired or revoked. Send a living key of the product."


class InvalidAdminKey(AuthenticationFailed):
    default_code = "INVALID_ADMIN_KEY"
    default_detail = "X-Admin-Key is missing, wrong, expired or revoked."


class InsufficientScope(PermissionDenied):
    """The platform key lives, but was not issued for this."""

    default_code = "INSUFFICIENT_SCOPE"

    def __init__(self, needed: frozenset[Scope]) -> None:
        either = " or ".join(scope.value for scope in Scope if scope in needed)
        super().__init__(f"This platform key does not have the scope {either}. Use a key of the product that has it.")


class PlatformKeyAuthentication(BaseAuthentication):
    """`request.auth` is the Product whose key came in `X-Platform-Key`, `request.user` the PlatformKey."""

    def authenticate(self, request: Request) -> tuple[PlatformKey, Product]:
        key = products.authenticate(request.headers.get("X-Platform-Key", ""))
        if key is None:
            raise InvalidPlatformKey
        return key, key.product

    def authenticate_header(self, request: Request) -> str:
        return "X-Platform-Key"


def recognise(plaintext: str, scope: Scope) -> Product | None:
    """The product whose living key with that scope this is; None for anything else, to refuse as the classes here do."""
    key = products.authenticate(plaintext)
    return None if key is None or scope not in key.scopes else key.product


class AdminKeyAuthentication(BaseAuthentication):
    """`request.auth` is "admin" when ORCH_ADMIN_KEY or a living AdminKey came in `X-Admin-Key`; `request.user` is the latter."""

    def authenticate(self, request: Request) -> tuple[AdminKey | None, str]:
        given = request.headers.get("X-Admin-Key", "")
        if not given:
            raise InvalidAdminKey
        key = None
        if not crypto.matches(given, settings.ENV.admin_key):  # that one needs no database
            key = admin_keys.authenticate(given)
            if key is None:
                raise InvalidAdminKey
        context.credential.set(None if key is None else key.name)  # names the key in audit rows and log lines
        return key, "admin"

    def authenticate_header(self, request: Request) -> str:
        return "X-Admin-Key"


class AnyKeyAuthentication(BaseAuthentication):
    """The operator's with an `X-Admin-Key`, else the product's."""

    def authenticate(self, request: Request) -> tuple[PlatformKey | AdminKey | None, Product | str]:
        return _asked_with(request).authenticate(request)

    def authenticate_header(self, request: Request) -> str:
        return _asked_with(request).authenticate_header(request)


def _asked_with(request: Request) -> AdminKeyAuthentication | PlatformKeyAuthentication:
    return AdminKeyAuthentication() if "X-Admin-Key" in request.headers else PlatformKeyAuthentication()


class IsProduct(BasePermission):
    """The caller is a product (its authentication has failed otherwise) with a key that has one of the scopes it takes."""

    to_read: frozenset[Scope] = frozenset({Scope.READ})
    to_write: frozenset[Scope] = frozenset({Scope.LIFECYCLE})

    def has_permission(self, request: Request, view: "APIView") -> bool:
        """Raises InsufficientScope."""
        if not isinstance(request.auth, Product):
            return False
        needed = self.to_read if request.method in SAFE_METHODS else self.to_write
        if needed.isdisjoint(cast(PlatformKey, request.user).scopes):
            raise InsufficientScope(needed)
        return True


class MayAdmit(IsProduct):
    """For `admit`, with whatever its flags lead to."""

    to_write = frozenset({Scope.ADMIT})


class MayHoldEngineKey(IsProduct):
    """For an engine whose key is in the answer: reading that is more than `read`."""

    to_read = frozenset({Scope.ADMIT, Scope.LIFECYCLE})


class HasAnyScope(IsProduct):
    """For what became of a request, whichever scope that needed."""

    to_read = frozenset(Scope)


class MayExplain(IsProduct):
    """For what changes nothing and says less than any scope shows; and for the operator."""

    to_write = frozenset(Scope)

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return request.auth == "admin" or super().has_permission(request, view)


class IsAdmin(BasePermission):
    """The caller holds an admin key."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return request.auth == "admin"
