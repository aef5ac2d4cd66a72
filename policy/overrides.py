"""Overrides: temporary values of single rules of a product's policy; and the policy in force, with overrides applied.

An override is in effect from its grant until it expires or is ended, exactly by the database's clock: `in_force` compares the
times itself and depends on no job. The grant and the end of an override both have an audit row. The periodic `end_due` writes the
rows of expired overrides.

Every admit needs the policy in force. The product's row therefore has a copy of its open overrides (`overridden`).
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models.functions import Now

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM, Actor
from common import times
from policy import audit_rows, products, rules
from policy.errors import OverrideNotFound, ProductNotFound
from policy.models import PolicyOverride, Product

MAX_S = 366 * 24 * 3600  # longest duration of an override, in seconds


def in_force(product: Product) -> dict[str, Any]:
    """Return the product's policy with living overrides applied. Every decision must use the result, never `Product.policy`.

    An override is living if it expires after `product.read_at`; the database's clock is read for a product without `read_at`.
    """
    if not product.overridden:
        return dict(product.policy)
    now = product.read_at or times.database_now()
    living = {rule: other["value"] for rule, other in product.overridden.items() if datetime.fromisoformat(other["until"]) > now}
    return {**product.policy, **living}


def of(product: Product) -> list[PolicyOverride]:
    """Return all overrides of the product, newest first, including ended overrides."""
    return list(product.overrides.all())


@transaction.atomic
def grant(product_id: UUID, rule: str, value: object, *, reason: str, expires_in_s: int, by: Actor) -> PolicyOverride:
    """Give a rule a different value for `expires_in_s` seconds; an open override of the rule is ended as replaced.

    Raises ProductNotFound, InvalidPolicy.
    """
    checked = rules.check({rule: value})[rule]
    product = products.lock(product_id)
    _end_expired(product)
    for earlier in product.overrides.open().filter(rule=rule):
        _end(earlier, "replaced", by=by)
    made = PolicyOverride.objects.create(
        product=product,
        rule=rule,
        value=checked,
        reason=reason[: products.MAX_REASON],
        granted_by=by,
        expires_at=Now() + timedelta(seconds=expires_in_s),
    )
    made.refresh_from_db()
    _copy(product.pk)
    metadata = {**_named(made), "value": checked, "reason": made.reason}
    audit_rows.record(Action.POLICY_OVERRIDE_GRANT, product, by=by, metadata=metadata)
    return made


@transaction.atomic
def end(product_id: UUID, override_id: UUID, *, by: Actor) -> PolicyOverride:
    """End a living override before its expiry. Raises ProductNotFound, OverrideNotFound."""
    product = products.lock(product_id)
    found = product.overrides.living().filter(pk=override_id).first()
    if found is None:
        raise OverrideNotFound("The product has no living override with this id.")
    _end(found, "revoked", by=by)
    _copy(product.pk)
    found.refresh_from_db(fields=["ended_at"])
    return found


def end_all(product: Product, *, by: Actor) -> None:
    """End all open overrides of a locked product, as a part of the product's deletion."""
    _end_expired(product)
    for override in product.overrides.open():
        _end(override, "product_deleted", by=by)
    _copy(product.pk)


def end_due() -> int:
    """End every expired override, with its audit row; return the number of ended overrides. Repeated calls are harmless."""
    due = PolicyOverride.objects.expired()
    return sum(_end_due_of(product_id) for product_id in due.order_by().values_list("product_id", flat=True).distinct())


@transaction.atomic
def _end_due_of(product_id: UUID) -> int:
    try:
        product = products.lock(product_id)
    except ProductNotFound:
        return 0  # deleted meanwhile; the deletion has ended all its overrides
    ended = _end_expired(product)
    _copy(product_id)
    return ended


def _end_expired(product: Product) -> int:
    return sum(_end(over, "expired", by=SYSTEM) for over in product.overrides.expired())


def _end(override: PolicyOverride, cause: str, *, by: Actor) -> bool:
    """End the override and write its audit row in one statement; return False if the override has ended already."""
    update = """
        UPDATE policy_policyoverride AS o
        -- an expired override ended at its expiry, even if the job comes later
        SET ended_at = least(statement_timestamp(), o.expires_at)
        FROM policy_product p
        -- no row matches, and no audit row is written, once the override has ended
        WHERE o.id = %(o_id)s AND o.ended_at IS NULL AND p.id = o.product_id
        -- the columns of audit.trail.SUBJECT; an override concerns no engine
        RETURNING p.id AS product_id, p.slug AS product_slug, NULL::text AS user_id, NULL::uuid AS engine_id,
                  NULL::text AS from_status, NULL::text AS to_status, NULL::bigint AS engine_seq
    """
    metadata = audit_rows.signed({**_named(override), "cause": cause}, by=by)
    return trail.record_move(update, {"o_id": override.pk}, Action.POLICY_OVERRIDE_END, by=by, metadata=metadata) is not None


def _copy(product_id: UUID) -> None:
    """Copy the open overrides of the locked product to the column `overridden` of its row."""
    found = PolicyOverride.objects.open().filter(product_id=product_id)
    copied = {over.rule: {"value": over.value, "until": over.expires_at.isoformat()} for over in found}
    Product.objects.filter(pk=product_id).update(overridden=copied)


def _named(override: PolicyOverride) -> Mapping[str, Any]:
    """Return an override as metadata of its audit rows."""
    return {"override_id": str(override.pk), "rule": override.rule, "expires_at": times.iso(override.expires_at)}
