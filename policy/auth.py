"""Authentication of products by platform key and of the operator by admin key, and the scopes required of platform keys.

By default, a platform key needs the scope `read` for requests that only read, and `lifecycle` for all others. Some endpoints
name a different permission class of this module.
"""

from typing import TYPE_CHECKING, cast

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from common import context
from common.settings import settings
from policy import admin_keys, crypto, products, thread_share
from policy.models import AdminKey, PlatformKey, Product, Scope

if TYPE_CHECKING:
    from rest_framework.views import APIView  # at run time rest_framework.views imports this module, named in the settings


class InvalidPlatformKey(AuthenticationFailed):
    default_code = "INVALID_PLATFORM_KEY"
    default_detail = "X-Platform-Key is missing, unknown, expired or revoked. Send a living key of the product."


class InvalidAdminKey(AuthenticationFailed):
    default_code = "INVALID_ADMIN_KEY"
    default_detail = "X-Admin-Key is missing, wrong, expired or revoked."


class InsufficientScope(PermissionDenied):
    """The platform key is living, but lacks the scope required by the endpoint."""

    default_code = "INSUFFICIENT_SCOPE"

    def __init__(self, needed: frozenset[Scope]) -> None:
        either = " or ".join(scope.value for scope in Scope if scope in needed)
        super().__init__(f"This platform key does not have the scope {either}. Use a key of the product that has it.")


class AdmitAuthentication(BaseAuthentication):
    """Authenticate by `X-Platform-Key`: `request.user` becomes the PlatformKey, `request.auth` its Product.

    For `admit` only: admits have threads of their own, and the gate in `engines.admission` keeps those threads from one product.
    """

    def authenticate(self, request: Request) -> tuple[PlatformKey, Product]:
        key = products.authenticate(request.headers.get("X-Platform-Key", ""))
        if key is None:
            raise InvalidPlatformKey
        context.identify(key.pk)  # rows and operations of the request name the key
        return key, key.product

    def authenticate_header(self, request: Request) -> str:
        return "X-Platform-Key"


class PlatformKeyAuthentication(AdmitAuthentication):
    """The same for all other endpoints. Raises ShareTaken while the product's requests hold the product's share of threads."""

    def authenticate(self, request: Request) -> tuple[PlatformKey, Product]:
        key, product = super().authenticate(request)
        thread_share.enter(product, is_destroy=request.method == "DELETE")  # a product deletes nothing but engines
        return key, product


def recognise(plaintext: str, scope: Scope) -> Product | None:
    """Return the product of a living key with the scope; None for all other keys, and the caller must refuse the request."""
    key = products.authenticate(plaintext)
    if key is None or scope not in key.scopes:
        return None
    context.identify(key.pk)
    return key.product


class AdminKeyAuthentication(BaseAuthentication):
    """Authenticate by `X-Admin-Key`, which must be ORCH_ADMIN_KEY or a living AdminKey.

    `request.auth` becomes "admin". `request.user` becomes the AdminKey, or None for ORCH_ADMIN_KEY.
    """

    def authenticate(self, request: Request) -> tuple[AdminKey | None, str]:
        given = request.headers.get("X-Admin-Key", "")
        if not given:
            raise InvalidAdminKey
        key = None
        if not crypto.matches(given, settings.ENV.admin_key):  # checked first: ORCH_ADMIN_KEY needs no database
            key = admin_keys.authenticate(given)
            if key is None:
                raise InvalidAdminKey
        # Rows, operations and log lines of the request name the key. ORCH_ADMIN_KEY has no row, and thus no id.
        context.identify(key.pk if key else None, key.name if key else None)
        return key, "admin"

    def authenticate_header(self, request: Request) -> str:
        return "X-Admin-Key"


class AnyKeyAuthentication(BaseAuthentication):
    """Authenticate the operator if the request has an `X-Admin-Key`, and a product otherwise."""

    def authenticate(self, request: Request) -> tuple[PlatformKey | AdminKey | None, Product | str]:
        return _asked_with(request).authenticate(request)

    def authenticate_header(self, request: Request) -> str:
        return _asked_with(request).authenticate_header(request)


def _asked_with(request: Request) -> AdminKeyAuthentication | PlatformKeyAuthentication:
    return AdminKeyAuthentication() if "X-Admin-Key" in request.headers else PlatformKeyAuthentication()


class IsProduct(BasePermission):
    """Permit products whose key has one of the scopes in `to_read` (GET, HEAD, OPTIONS) or `to_write` (other methods)."""

    to_read: frozenset[Scope] = frozenset({Scope.READ})
    to_write: frozenset[Scope] = frozenset({Scope.LIFECYCLE})

    def has_permission(self, request: Request, view: "APIView") -> bool:
        """Return False for callers other than products. Raises InsufficientScope for a key without a required scope."""
        if not isinstance(request.auth, Product):
            return False
        needed = self.to_read if request.method in SAFE_METHODS else self.to_write
        if needed.isdisjoint(cast(PlatformKey, request.user).scopes):
            raise InsufficientScope(needed)
        return True


class MayAdmit(IsProduct):
    """For `admit`, including the provision or wake started by its flags."""

    to_write = frozenset({Scope.ADMIT})


class MayHoldEngineKey(IsProduct):
    """For answers containing an engine's key: the scope `read` is not enough for an engine's key."""

    to_read = frozenset({Scope.ADMIT, Scope.LIFECYCLE})


class HasAnyScope(IsProduct):
    """For the outcome of an earlier request, whichever scope the request needed."""

    to_read = frozenset(Scope)


class IsProductOrAdmin(IsProduct):
    """Permit the operator, too; with AnyKeyAuthentication."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return request.auth == "admin" or super().has_permission(request, view)


class MayExplain(IsProductOrAdmin):
    """For `explain`: any scope is enough, because the call changes nothing and reveals little."""

    to_write = frozenset(Scope)


class IsAdmin(BasePermission):
    """Permit the operator, authenticated by an admin key."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        return request.auth == "admin"
