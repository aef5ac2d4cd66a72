"""What can be done with products: register, edit the policy, issue and revoke keys. Every change commits with its row."""

import re
from datetime import timedelta
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.db.models.functions import Now

from audit import trail
from audit.actions import Action
from audit.actors import RESERVED, Actor
from policy import rules, secrets
from policy.errors import InvalidProduct, PlatformKeyNotFound, ProductNotFound, ProductSlugExists
from policy.models import SLUG_PATTERN, PlatformKey, Product

_UNMARKED = Q(last_used_at=None) | Q(last_used_at__lt=Now() - timedelta(minutes=1))


def register(slug: str, display_name: str, policy: object, *, by: Actor) -> tuple[Product, str]:
    """Make a product with one platform key; the key's plaintext is in the answer and nowhere else.

    Raises InvalidProduct, InvalidPolicy, ProductSlugExists.
    """
    _check_names(slug, display_name)
    checked = rules.check(policy)
    try:
        with transaction.atomic():
            product = Product.objects.create(slug=slug, display_name=display_name, policy=checked)
            trail.record(Action.POLICY_REGISTER, _subject(product), by=by, metadata=checked)
            _, plaintext = issue_key(product, by=by)
    except IntegrityError as error:
        raise ProductSlugExists(f"A product with the slug {slug!r} exists; choose another slug.") from error
    return product, plaintext


def get(product_id: UUID) -> Product:
    """The product with this id. Raises ProductNotFound."""
    try:
        return Product.objects.get(pk=product_id)
    except Product.DoesNotExist as error:
        raise ProductNotFound(f"No product has the id {product_id}.") from error


def lock(product_id: UUID) -> Product:
    """The product, locked for this transaction against other intents (not against foreign keys to it). Raises ProductNotFound."""
    row = Product.objects.select_for_update(no_key=True).filter(pk=product_id).first()
    if row is None:
        raise ProductNotFound(f"No product has the id {product_id}.")
    return row


@transaction.atomic
def update_policy(product_id: UUID, policy: object, *, by: Actor) -> Product:
    """Replace the policy whole; in force with the next request. Raises ProductNotFound, InvalidPolicy."""
    checked = rules.check(policy)
    product = lock(product_id)
    product.policy = checked
    product.save(update_fields=["policy"])
    trail.record(Action.POLICY_UPDATE, _subject(product), by=by, metadata=checked)
    return product


@transaction.atomic
def issue_key(product: Product, *, by: Actor) -> tuple[PlatformKey, str]:
    """One more platform key for the product, beside those it has; returns it with its plaintext, shown this once."""
    plaintext = secrets.make_key(secrets.PLATFORM_PREFIX)
    key = PlatformKey.objects.create(product=product, prefix=plaintext[: secrets.SHOWN], key_hash=secrets.hash_key(plaintext))
    trail.record(Action.PLATFORM_KEY_ISSUE, _subject(product), by=by, metadata={"key_id": str(key.pk), "prefix": key.prefix})
    return key, plaintext


@transaction.atomic
def revoke_key(key_id: UUID, *, by: Actor) -> PlatformKey:
    """End a platform key: the next request with it is refused, in every process. Raises PlatformKeyNotFound."""
    key = PlatformKey.objects.select_for_update().select_related("product").filter(pk=key_id, revoked_at=None).first()
    if key is None:
        raise PlatformKeyNotFound("No such platform key, or it is revoked already.")
    PlatformKey.objects.filter(pk=key_id).update(revoked_at=Now())
    trail.record(Action.PLATFORM_KEY_REVOKE, _subject(key.product), by=by, metadata={"key_id": str(key.pk), "prefix": key.prefix})
    return key


def authenticate(plaintext: str) -> Product | None:
    """The product whose living key this is, or None. Marks the key's last use, at most once a minute."""
    digest = secrets.hash_key(plaintext)
    living = PlatformKey.objects.select_related("product").filter(key_hash=digest, revoked_at=None)
    key = living.annotate(unmarked=_UNMARKED).first()
    if key is None or not secrets.matches(digest, key.key_hash):
        return None
    if key.unmarked:
        PlatformKey.objects.filter(_UNMARKED, pk=key.pk).update(last_used_at=Now())
    return key.product


def _check_names(slug: str, display_name: str) -> None:
    if not re.fullmatch(SLUG_PATTERN, slug) or slug in RESERVED:
        raise InvalidProduct(f"slug: must match {SLUG_PATTERN} and be none of {', '.join(sorted(RESERVED))}.")
    if not 1 <= len(display_name) <= 255 or not display_name.isprintable():
        raise InvalidProduct("display_name: must be 1 to 255 printable characters.")


def _subject(product: Product) -> trail.Subject:
    return trail.Subject(product_id=product.pk, product_slug=product.slug)
