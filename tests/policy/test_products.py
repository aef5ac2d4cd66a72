"""Products and their platform keys."""

import hashlib
import uuid
from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from audit import action_table, actors
from audit.models import AuditRow
from policy import admin_keys, products
from policy.errors import PlatformKeyNotFound
from policy.models import AdminKey, PlatformKey, Product
from tests.conftest import make_product
from tests.engines.crew import in_parallel


@pytest.mark.parametrize(
    ("action", "change"),
    [
        ("policy_register", lambda: products.register("acme", "Acme", {}, by=actors.ADMIN)),
        ("admin_key_issue", lambda: admin_keys.issue("deploy", by=actors.ADMIN)),
    ],
)
def test_change_whose_row_the_log_refuses_is_undone_and_names_no_other_reason(db, superuser, action, change):
    superuser.execute("DELETE FROM audit_action WHERE action = %s", [action])
    try:
        with pytest.raises(IntegrityError, match=f"no action {action}"):
            change()
    finally:
        action_table.fill()
    assert not Product.objects.exists()
    assert not AdminKey.objects.exists()
    assert change()


def test_authenticate_finds_the_product_of_any_of_its_keys(product, other_product):
    _, second = products.issue_key(product, by=actors.staff("sam"))
    assert products.authenticate(product.key).product == product
    assert products.authenticate(second).product == product
    assert products.authenticate(other_product.key).product == other_product
    assert products.authenticate("pk-sept-" + "x" * 43) is None
    assert products.authenticate("") is None


def test_revoke_ends_one_key_and_no_other(product):
    key, second = products.issue_key(product, by=actors.staff("sam"))
    products.revoke_key(key.pk, by=actors.staff("sam"))
    assert products.authenticate(second) is None
    assert products.authenticate(product.key).product == product
    row = AuditRow.objects.get(action="platform_key_revoke")
    assert (row.actor, row.product_slug) == ("admin:sam", "acme")
    assert row.metadata == {"key_id": str(key.pk), "prefix": key.prefix}


def test_revoke_refuses_a_key_that_is_revoked_or_none(product):
    key, _ = products.issue_key(product, by=actors.ADMIN)
    products.revoke_key(key.pk, by=actors.ADMIN)
    for key_id in (key.pk, uuid.uuid4()):
        with pytest.raises(PlatformKeyNotFound):
            products.revoke_key(key_id, by=actors.ADMIN)
    assert AuditRow.objects.filter(action="platform_key_revoke").count() == 1


def test_authenticate_marks_the_last_use_once_a_minute(product, django_assert_num_queries):
    with django_assert_num_queries(2):
        products.authenticate(product.key)
    marked = PlatformKey.objects.get().last_used_at
    assert marked is not None
    with django_assert_num_queries(1):
        products.authenticate(product.key)
    assert PlatformKey.objects.get().last_used_at == marked
    PlatformKey.objects.update(last_used_at=Now() - timedelta(seconds=61))
    products.authenticate(product.key)
    assert PlatformKey.objects.get().last_used_at > marked


def test_key_is_kept_as_its_sha256(product):
    assert PlatformKey.objects.get().key_hash == hashlib.sha256(product.key.encode()).hexdigest()


def test_register_at_once_gives_one_product_of_a_slug(db):
    results = in_parallel(lambda _: make_product("acme"), range(8))
    assert sum(isinstance(result, Product) for result in results) == 1
    assert {type(result).__name__ for result in results} == {"Product", "ProductSlugExists"}
    assert Product.objects.count() == PlatformKey.objects.count() == 1


@pytest.mark.parametrize("slug", ["system", "admin", "A", "a", "-a", "a b", "a" * 64])
def test_database_refuses_a_slug_that_cannot_be(db, slug):
    with pytest.raises(IntegrityError), transaction.atomic():
        Product.objects.create(slug=slug, display_name="x")
