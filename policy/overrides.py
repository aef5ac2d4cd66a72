"""Overrides: another value of one rule of a product's policy, for a time; and so the policy that is in force.

An override has its effect from its grant until it expires or is ended, by the database's clock and to the instant: `in_force`
looks at the time itself and waits for no job. Its end has a row like its grant: `end_due` writes those of the expired.

What is in force is asked for on every admit, so the product's row carries a copy of its open overrides (`overridden`).
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

MAX_S = 366 * 24 * 3600  # the longest that a value may be called temporary


def in_force(product: Product) -> dict[str, Any]:
    """The product's policy with the overrides that lived when it was read: what decides. Nobody decides by `Product.policy`."""
    if not product.overridden:
        return dict(product.policy)
    now = product.read_at or times.database_now()
    living = {rule: other["value"] for rule, other in product.overridden.items() if datetime.fromisoformat(other["until"]) > now}
    return {**product.policy, **living}


def of(product: Product) -> list[PolicyOverride]:
    """Every override that the product had, newest first."""
    return list(product.overrides.all())


@transaction.atomic
def grant(product_id: UUID, rule: str, value: object, *, reason: str, expires_in_s: int, by: Actor) -> PolicyOverride:
    """Give a rule another value for so many seconds; it replaces the rule's override that there is, if any.

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
    metadata = {**_told(made), "value": checked, "reason": made.reason}
    audit_rows.record(Action.POLICY_OVERRIDE_GRANT, product, by=by, metadata=metadata)
    return made


@transaction.atomic
def end(product_id: UUID, override_id: UUID, *, by: Actor) -> PolicyOverride:
    """End a living override before its time. Raises ProductNotFound, OverrideNotFound."""
    product = products.lock(product_id)
    found = product.overrides.living().filter(pk=override_id).first()
    if found is None:
        raise OverrideNotFound("The product has no living override with this id.")
    _end(found, "revoked", by=by)
    _copy(product.pk)
    found.refresh_from_db(fields=["ended_at"])
    return found


def end_all(product: Product, *, by: Actor) -> None:
    """End every override of a locked product, which is being deleted."""
    _end_expired(product)
    for override in product.overrides.open():
        _end(override, "product_deleted", by=by)
    _copy(product.pk)


def end_due() -> int:
    """Write the end of every override that expired; returns how many. However often it is called, each has one."""
    due = PolicyOverride.objects.expired()
    return sum(_end_due_of(product_id) for product_id in due.order_by().values_list("product_id", flat=True).distinct())


@transaction.atomic
def _end_due_of(product_id: UUID) -> int:
    try:
        product = products.lock(product_id)
    except ProductNotFound:
        return 0  # deleted since, and every override of it ended
    ended = _end_expired(product)
    _copy(product_id)
    return ended


def _end_expired(product: Product) -> int:
    return sum(_end(over, "expired", by=SYSTEM) for over in product.overrides.expired())


def _end(override: PolicyOverride, cause: str, *, by: Actor) -> bool:
    """End the override, with its row, in one statement; False when it has ended already."""
    update = (
        "UPDATE policy_policyoverride AS o SET ended_at = least(statement_timestamp(), o.expires_at) FROM policy_product p"
        " WHERE o.id = %(o_id)s AND o.ended_at IS NULL AND p.id = o.product_id"
        " RETURNING p.id AS product_id, p.slug AS product_slug, NULL::text AS user_id, NULL::uuid AS engine_id,"
        " NULL::text AS from_status, NULL::text AS to_status, NULL::bigint AS engine_seq"
    )
    metadata = audit_rows.signed({**_told(override), "cause": cause}, by=by)
    return trail.record_move(update, {"o_id": override.pk}, Action.POLICY_OVERRIDE_END, by=by, metadata=metadata) is not None


def _copy(product_id: UUID) -> None:
    """Have the row of the locked product say which overrides are open."""
    found = PolicyOverride.objects.open().filter(product_id=product_id)
    copied = {over.rule: {"value": over.value, "until": over.expires_at.isoformat()} for over in found}
    Product.objects.filter(pk=product_id).update(overridden=copied)


def _told(override: PolicyOverride) -> Mapping[str, Any]:
    """An override as its rows name it."""
    return {"override_id": str(override.pk), "rule": override.rule, "expires_at": times.iso(override.expires_at)}
