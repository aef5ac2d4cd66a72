"""What can be done with products: register, edit the policy, issue, rotate and revoke keys. Every change commits with its row."""

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
MAX_REASON = 200

_KEY, _PRODUCT = Columns(PlatformKey, "k"), Columns(Product, "p")
_FIND_KEY = f"""
SELECT {_KEY.sql}, {_PRODUCT.sql},
       k.last_used_at IS NULL OR k.last_used_at < statement_timestamp() - interval '1 minute', statement_timestamp()
FROM policy_platformkey k JOIN policy_product p ON p.id = k.product_id
WHERE k.key_hash = %s AND p.deleted_at IS NULL AND k.revoked_at IS NULL
  AND (k.expires_at IS NULL OR k.expires_at > statement_timestamp())
"""


def register(slug: str, display_name: str, policy: object, *, by: Actor) -> tuple[Product, str]:
    """Make a product with one platform key; the key's plaintext is in the answer and nowhere else.

    Raises InvalidProduct, InvalidPolicy, ProductSlugExists.
    """
    _check_names(slug, display_name)
    checked = rules.check(policy)
    try:
        with transaction.atomic():
            product = Product.objects.create(slug=slug, display_name=display_name, policy=checked)
            audit_rows.record(Action.POLICY_REGISTER, product, by=by, metadata=checked)
            _, plaintext = issue_key(product, by=by)
    except IntegrityError as error:
        raise ProductSlugExists(f"A product with the slug {slug!r} exists or existed; choose another slug.") from error
    return product, plaintext


def get(product_id: UUID) -> Product:
    """The product with this id. Raises ProductNotFound."""
    try:
        return Product.objects.living().get(pk=product_id)
    except Product.DoesNotExist as error:
        raise ProductNotFound(f"No product has the id {product_id}.") from error


def lock(product_id: UUID) -> Product:
    """The product, locked for this transaction against other intents (not against foreign keys to it). Raises ProductNotFound."""
    row = Product.objects.living().locked().filter(pk=product_id).annotate(clock=Now()).first()
    if row is None:
        raise ProductNotFound(f"No product has the id {product_id}.")
    row.read_at = vars(row)["clock"]
    return row


@transaction.atomic
def update_policy(product_id: UUID, policy: object, *, by: Actor) -> Product:
    """Replace the policy whole; in force with the next request. Raises ProductNotFound, InvalidPolicy."""
    checked = rules.check(policy)
    product = lock(product_id)
    product.policy = checked
    product.save(update_fields=["policy"])
    audit_rows.record(Action.POLICY_UPDATE, product, by=by, metadata=checked)
    return product


# -- suspended, resumed, deleted ---------------------------------------------------------------------------------------


@transaction.atomic
def suspend(product_id: UUID, reason: str, *, by: Actor, stop_engines: bool = False) -> Product:
    """Refuse from the next request on what would admit a user or make an engine run. `reason` is told to the product.

    `stop_engines` is noted: `engines.lifecycle.products` stops them. A product that is suspended already stays so for the reason
    it was. Raises ProductNotFound.
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
    """End the suspension; a product without one is left as it is. Raises ProductNotFound."""
    product = lock(product_id)
    if product.suspended_at is None:
        return product
    product.suspended_at, product.suspension_reason, product.stops_engines = None, "", False
    product.save(update_fields=["suspended_at", "suspension_reason", "stops_engines"])
    audit_rows.record(Action.PRODUCT_RESUME, product, by=by, metadata={"reason": reason[:MAX_REASON]})
    return product


def hold_suspension(product_id: UUID) -> str:
    """Why the product is suspended, empty when it is not; nobody suspends or resumes it before the transaction ends.

    Beside others who hold it: starts of a product need not wait for each other.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT suspension_reason FROM policy_product WHERE id = %s FOR SHARE", [product_id])
        return str(cursor.fetchone()[0])


def delete(product: Product, *, by: Actor) -> None:
    """End a locked product that has no living engine: its keys are dead, its environments gone. A tombstone keeps its slug."""
    Product.objects.filter(pk=product.pk).update(deleted_at=Now())
    EngineEnv.objects.filter(product=product).delete()
    audit_rows.record(Action.PRODUCT_DELETE, product, by=by, metadata={})


# -- platform keys -----------------------------------------------------------------------------------------------------


@transaction.atomic
def issue_key(
    product: Product, *, by: Actor, scopes: Iterable[str] = Scope.values, expires_in_s: int | None = None
) -> tuple[PlatformKey, str]:
    """One more platform key for the product, beside those it has; returns it with its plaintext, shown this once."""
    key, plaintext = _make_key(product, scopes, expires_in_s)
    audit_rows.record(Action.PLATFORM_KEY_ISSUE, product, by=by, metadata=_told(key))
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
    """Issue a key in place of all the living ones, or of the one with `key_id`: those expire within `overlap_s` seconds.

    Returns the new key, its plaintext, shown this once, and those it replaces. It gets their scopes, unless others are given.
    Raises ProductNotFound, PlatformKeyNotFound.
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
    metadata = {**_told(key), "replaced": [str(pk) for pk in old_ids], "overlap_s": overlap_s}
    audit_rows.record(Action.PLATFORM_KEY_ROTATE, product, by=by, metadata=metadata)
    return key, plaintext, list(replaced.all())  # as they are now


def find_key(product_id: UUID, key_id: UUID) -> PlatformKey:
    """The product's key with this id, living or not. Raises ProductNotFound, PlatformKeyNotFound."""
    key = get(product_id).keys.filter(pk=key_id).first()
    if key is None:
        raise PlatformKeyNotFound("The product has no platform key with this id.")
    return key


@transaction.atomic
def revoke_key(key_id: UUID, *, by: Actor) -> PlatformKey:
    """End a platform key: the next request with it is refused, in every process. Raises PlatformKeyNotFound."""
    unrevoked = PlatformKey.objects.select_for_update(of=("self",)).select_related("product").unrevoked()
    key = unrevoked.filter(pk=key_id).first()
    if key is None:
        raise PlatformKeyNotFound("No such platform key, or it is revoked already.")
    PlatformKey.objects.filter(pk=key_id).update(revoked_at=Now())
    audit_rows.record(Action.PLATFORM_KEY_REVOKE, key.product, by=by, metadata={"key_id": str(key.pk), "prefix": key.prefix})
    key.refresh_from_db(fields=["revoked_at"])
    return key


def authenticate(plaintext: str) -> PlatformKey | None:
    """The living key with this plaintext, and with it its product; or None. Marks the key's last use, at most once a minute."""
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


def _told(key: PlatformKey) -> dict[str, Any]:
    """A new key as its row has it."""
    expiry = {} if key.expires_at is None else {"expires_at": iso(key.expires_at)}
    return {"key_id": str(key.pk), "prefix": key.prefix, "scopes": key.scopes, **expiry}


def _check_names(slug: str, display_name: str) -> None:
    if not re.fullmatch(SLUG_PATTERN, slug) or slug in RESERVED:
        raise InvalidProduct(f"slug: must match {SLUG_PATTERN} and be none of {', '.join(sorted(RESERVED))}.")
    if not 1 <= len(display_name) <= 255 or not display_name.isprintable():
        raise InvalidProduct("display_name: must be 1 to 255 printable characters.")
