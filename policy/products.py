"""Changes of products, their policies and platform keys. Every change commits together with its audit row."""

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Coalesce, Least, Now

from audit.actions import Action
from audit.actors import RESERVED, Actor
from common import statements
from common.statements import Columns
from common.times import iso
from policy import audit_rows, crypto, keys, rules
from policy.errors import InvalidProduct, PlatformKeyNotFound, ProductNotFound, ProductSlugExists
from policy.models import SLUG_PATTERN, EngineEnv, PlatformKey, Product, Scope

OVERLAP_S = 24 * 3600
_RESERVED = ", ".join(sorted(RESERVED)[:-1]) + " or " + max(RESERVED)
MAX_REASON = 200

_KEY, _PRODUCT = Columns(PlatformKey, "k"), Columns(Product, "p")
_FIND_KEY = f"""
SELECT {_KEY.sql}, {_PRODUCT.sql},
       -- true when last_used_at is due for an update, at most once a minute
       k.last_used_at IS NULL OR k.last_used_at < statement_timestamp() - interval '1 minute',
       -- read_at of the product: the moment for which its overrides are evaluated
       statement_timestamp()
FROM policy_platformkey k JOIN policy_product p ON p.id = k.product_id
WHERE k.key_hash = %s AND p.deleted_at IS NULL AND k.revoked_at IS NULL
  -- no expiry date, or an expiry date in the future
  AND (k.expires_at IS NULL OR k.expires_at > statement_timestamp())
"""


def register(slug: str, display_name: str, policy: object, *, by: Actor) -> tuple[Product, str]:
    """Create a product with one platform key; return the product and the key's plaintext, which is stored nowhere.

    Raises InvalidProduct, InvalidPolicy, ProductSlugExists.
    """
    _check_names(slug, display_name)
    checked = rules.check(policy)
    with transaction.atomic():
        try:
            with transaction.atomic():  # around the insert alone: a row that the audit log refuses is no slug that exists
                product = Product.objects.create(slug=slug, display_name=display_name, policy=checked)
        except IntegrityError as error:
            raise ProductSlugExists(f"A product with the slug {slug!r} exists or existed; choose another slug.") from error
        audit_rows.record(Action.POLICY_REGISTER, product, by=by, metadata=checked)
        _, plaintext = issue_key(product, by=by)
    return product, plaintext


def get(product_id: UUID) -> Product:
    """Return the living product with the id. Raises ProductNotFound."""
    try:
        return Product.objects.living().get(pk=product_id)
    except Product.DoesNotExist as error:
        raise ProductNotFound(f"No product has the id {product_id}.") from error


def with_slugs(slugs: Iterable[str]) -> list[Product]:
    """Return the living products with these slugs."""
    found = list(Product.objects.living().filter(slug__in=slugs).annotate(clock=Now()))
    for product in found:
        product.read_at = vars(product)["clock"]
    return found


def lock(product_id: UUID) -> Product:
    """Return the living product with its row locked for the transaction. Raises ProductNotFound.

    Other transactions calling `lock` or `hold_suspension` wait. New rows with a foreign key to the product do not wait.
    """
    row = Product.objects.living().locked().filter(pk=product_id).annotate(clock=Now()).first()
    if row is None:
        raise ProductNotFound(f"No product has the id {product_id}.")
    row.read_at = vars(row)["clock"]
    return row


@transaction.atomic
def update_policy(product_id: UUID, policy: object, *, by: Actor) -> Product:
    """Replace the whole policy; the new policy decides from the next request on. Raises ProductNotFound, InvalidPolicy."""
    checked = rules.check(policy)
    product = lock(product_id)
    product.policy = checked
    product.save(update_fields=["policy"])
    audit_rows.record(Action.POLICY_UPDATE, product, by=by, metadata=checked)
    return product


# -- suspended, resumed, deleted ---------------------------------------------------------------------------------------


@transaction.atomic
def suspend(product_id: UUID, reason: str, *, by: Actor, stop_engines: bool = False) -> Product:
    """Suspend the product: from the next request on, admits, provisions and starts are refused. Refusals quote `reason`.

    `stop_engines` is only stored here: `engines.lifecycle.products` stops the engines. A product suspended earlier keeps its
    first reason. Raises ProductNotFound.
    """
    product = lock(product_id)
    if product.suspended_at is None:
        product.suspension_reason = reason[:MAX_REASON]
    elif product.stops_engines or not stop_engines:
        return product
    Product.objects.filter(pk=product_id).update(
        suspended_at=Coalesce("suspended_at", Now()), suspension_reason=product.suspension_reason, stops_engines=stop_engines
    )
    metadata = {"reason": product.suspension_reason, **({"stop_engines": True} if stop_engines else {})}
    audit_rows.record(Action.PRODUCT_SUSPEND, product, by=by, metadata=metadata)
    product.refresh_from_db(fields=["suspended_at", "stops_engines"])
    return product


@transaction.atomic
def resume(product_id: UUID, reason: str, *, by: Actor) -> Product:
    """End the suspension; a product not suspended stays unchanged. Raises ProductNotFound."""
    product = lock(product_id)
    if product.suspended_at is None:
        return product
    product.suspended_at, product.suspension_reason, product.stops_engines = None, "", False
    product.save(update_fields=["suspended_at", "suspension_reason", "stops_engines"])
    audit_rows.record(Action.PRODUCT_RESUME, product, by=by, metadata={"reason": reason[:MAX_REASON]})
    return product


def hold_suspension(product_id: UUID) -> str:
    """Return the reason of the product's suspension, empty without one, and lock the suspension for the transaction.

    The row lock is shared: several starts of the product hold the lock at once, and only callers of `lock` wait.
    """
    with connection.cursor() as cursor:
        # FOR SHARE conflicts with the row lock of `lock`, and not with a second FOR SHARE.
        cursor.execute("SELECT suspension_reason FROM policy_product WHERE id = %s FOR SHARE", [product_id])
        return str(cursor.fetchone()[0])


def delete(product: Product, *, by: Actor) -> None:
    """Delete a locked product without living engines. The row stays as a tombstone, and the slug stays taken.

    The product's keys are refused from the next request on, and its engine environments are removed.
    """
    Product.objects.filter(pk=product.pk).update(deleted_at=Now())
    EngineEnv.objects.filter(product=product).delete()
    audit_rows.record(Action.PRODUCT_DELETE, product, by=by, metadata={})


# -- platform keys -----------------------------------------------------------------------------------------------------


@transaction.atomic
def issue_key(
    product: Product, *, by: Actor, scopes: Iterable[str] = Scope.values, expires_in_s: int | None = None
) -> tuple[PlatformKey, str]:
    """Issue one more platform key; return the key and its plaintext, which is stored nowhere. Existing keys stay valid."""
    key, plaintext = _make_key(product, scopes, expires_in_s)
    audit_rows.record(Action.PLATFORM_KEY_ISSUE, product, by=by, metadata=_named(key))
    return key, plaintext


@transaction.atomic
def rotate_key(
    product_id: UUID,
    *,
    by: Actor,
    overlap_s: int = OVERLAP_S,
    key_id: UUID | None = None,
    scopes: Iterable[str] | None = None,
    expires_in_s: int | None = None,
) -> tuple[PlatformKey, str, Sequence[PlatformKey]]:
    """Issue a key in place of all living keys, or of the key with `key_id`; replaced keys expire within `overlap_s` seconds.

    Returns the new key, its plaintext (stored nowhere) and the replaced keys. Without `scopes`, the new key gets all scopes of
    the replaced keys. Raises ProductNotFound, PlatformKeyNotFound.
    """
    product = lock(product_id)
    living = product.keys.living()
    old_ids = list((living if key_id is None else living.filter(pk=key_id)).values_list("pk", flat=True))
    if key_id is not None and not old_ids:
        raise PlatformKeyNotFound("The product has no living platform key with this id.")
    replaced = product.keys.filter(pk__in=old_ids)
    if scopes is None:
        scopes = {scope for key in replaced for scope in key.scopes} or Scope.values
    replaced.update(expires_at=Least("expires_at", Now() + timedelta(seconds=overlap_s)))
    key, plaintext = _make_key(product, scopes, expires_in_s)
    metadata = {**_named(key), "replaced": [str(pk) for pk in old_ids], "overlap_s": overlap_s}
    audit_rows.record(Action.PLATFORM_KEY_ROTATE, product, by=by, metadata=metadata)
    return key, plaintext, list(replaced.all())  # .all() reads the keys again, with their new expiry


def find_key(product_id: UUID, key_id: UUID) -> PlatformKey:
    """Return the product's key with the id, even an expired or revoked key. Raises ProductNotFound, PlatformKeyNotFound."""
    key = get(product_id).keys.filter(pk=key_id).first()
    if key is None:
        raise PlatformKeyNotFound("The product has no platform key with this id.")
    return key


@transaction.atomic
def revoke_key(key_id: UUID, *, by: Actor) -> PlatformKey:
    """Revoke a platform key: every process refuses the next request with the key. Raises PlatformKeyNotFound."""
    unrevoked = PlatformKey.objects.select_for_update(of=("self",)).select_related("product").unrevoked()
    key = unrevoked.filter(pk=key_id).first()
    if key is None:
        raise PlatformKeyNotFound("No platform key has this id, or the key is revoked already.")
    PlatformKey.objects.filter(pk=key_id).update(revoked_at=Now())
    audit_rows.record(Action.PLATFORM_KEY_REVOKE, key.product, by=by, metadata={"key_id": str(key.pk), "prefix": key.prefix})
    key.refresh_from_db(fields=["revoked_at"])
    return key


def authenticate(plaintext: str) -> PlatformKey | None:
    """Return the living key with the plaintext, its product attached, or None. Updates `last_used_at` at most once a minute."""
    digest = crypto.hash_key(plaintext)
    row = statements.first(_FIND_KEY, [digest])
    if row is None:
        return None
    key, product = _KEY.build(row[: _KEY.count]), _PRODUCT.build(row[_KEY.count : -2])
    if not crypto.matches(digest, key.key_hash):
        return None
    product.read_at = row[-1]
    key.product = product
    if row[-2]:
        keys.mark_used(key)
    return key


def _make_key(product: Product, scopes: Iterable[str], expires_in_s: int | None) -> tuple[PlatformKey, str]:
    ordered = [scope for scope in Scope.values if scope in set(scopes)]
    return keys.make(PlatformKey.objects.all(), crypto.PLATFORM_PREFIX, expires_in_s, product=product, scopes=ordered)


def _named(key: PlatformKey) -> dict[str, Any]:
    """Return a new key as metadata of its audit row."""
    expiry = {} if key.expires_at is None else {"expires_at": iso(key.expires_at)}
    return {"key_id": str(key.pk), "prefix": key.prefix, "scopes": key.scopes, **expiry}


def is_slug(text: str) -> bool:
    """Whether the text can be the slug of a product."""
    return re.fullmatch(SLUG_PATTERN, text) is not None and text not in RESERVED


def _check_names(slug: str, display_name: str) -> None:
    if not is_slug(slug):
        raise InvalidProduct(f"slug: must match {SLUG_PATTERN} and must not be {_RESERVED}.")
    if not 1 <= len(display_name) <= 255 or not display_name.isprintable():
        raise InvalidProduct("display_name: must be 1 to 255 printable characters.")
