"""A product deleted: refused while engines live, gone from everything once they do not, and whole in the log."""

import itertools

import pytest
from django.conf import settings
from django.test import Client

from audit import actors
from audit.models import AuditRow
from engines import lifecycle
from engines.errors import ProductHasEngines
from engines.models import Engine, Operation, Status
from policy import environments, overrides, products
from policy.errors import PolicyError, ProductNotFound, ProductSlugExists
from policy.models import EngineEnv, PolicyOverride, Product
from tests.conftest import make_product
from tests.engines.crew import in_parallel
from tests.engines.registry import put_engine
from tests.envelopes import assert_error

ACME = actors.product("acme")
ADMIN = actors.ADMIN
TOMBSTONE = {"status": Status.DESTROYED, "destroyed_at": "2026-01-01T00:00:00Z", "key_hash": "", "key_ciphertext": ""}


@pytest.fixture
def admin(db):
    """The REST API as the operator calls it."""
    return Client(headers={"X-Admin-Key": settings.ENV.admin_key})


def delete(admin, product, **headers):
    return admin.delete(f"/products/{product.pk}", headers=headers)


def test_delete_is_refused_while_engines_live(admin, product):
    put_engine(product)
    put_engine(product, "bob", Status.STOPPED)
    put_engine(product, "carol", **TOMBSTONE)
    error = assert_error(delete(admin, product), 409, "PRODUCT_HAS_ENGINES")
    assert error["details"] == {"engines": 2}
    assert products.get(product.pk) == product
    assert not AuditRow.objects.filter(action="product_delete").exists()


def test_delete_takes_the_keys_and_leaves_the_record(admin, api, product, carry_out):
    environments.replace(product.pk, {"TOKEN": "s3cret"}, by=ADMIN)
    overrides.grant(product.pk, "pids", 70, reason="launch", expires_in_s=60, by=ADMIN)
    operation = lifecycle.provision(product, "alice", by=ACME)
    carry_out(operation)
    carry_out(lifecycle.destroy(operation.engine, by=ACME))
    assert delete(admin, product).json() == {"status": "deleted", "product_id": str(product.pk)}
    assert_error(api.call("GET", "/status"), 401, "INVALID_PLATFORM_KEY")
    assert_error(api.call("POST", "/engines/alice/admit"), 401, "INVALID_PLATFORM_KEY")
    assert not EngineEnv.objects.exists()
    assert not PolicyOverride.objects.filter(ended_at=None).exists()
    rows = AuditRow.objects.filter(product_id=product.pk).order_by("-id")
    assert [(row.action, row.actor, row.product_slug, row.metadata.get("cause")) for row in rows[:2]] == [
        ("product_delete", "admin", "acme", None), ("policy_override_end", "admin", "acme", "product_deleted"),
    ]  # fmt: skip
    assert rows.filter(action="destroy").exists()
    assert Engine.objects.get().product == product


def test_deleted_product_is_not_found_by_any_of_its_endpoints(admin, product):
    key = product.keys.get()
    lifecycle.delete_product(product.pk, by=ADMIN)
    path, json = f"/products/{product.pk}", "application/json"
    for answer in (
        delete(admin, product),
        admin.put(f"{path}/policy", {"policy": {}}, json),
        admin.get(f"{path}/platform-keys"),
        admin.post(f"{path}/platform-keys", {}, json),
        admin.delete(f"{path}/platform-keys/{key.pk}"),
        admin.post(f"{path}/rotate-platform-key", {}, json),
        admin.get(f"{path}/engine-env"),
        admin.put(f"{path}/engine-env", {"env": {}}, json),
        admin.get(f"{path}/overrides"),
        admin.post(f"{path}/overrides", {"rule": "pids", "value": 64, "reason": "x", "expires_in_s": 1}, json),
        admin.post(f"{path}/suspend", {"reason": "x"}, json),
        admin.post(f"{path}/resume", {"reason": "x"}, json),
    ):
        assert_error(answer, 404, "PRODUCT_NOT_FOUND")
    assert AuditRow.objects.order_by("-id")[0].action == "product_delete"


def test_deleted_products_slug_stays_taken(product):
    lifecycle.delete_product(product.pk, by=ADMIN)
    with pytest.raises(ProductSlugExists, match="existed"):
        make_product()
    assert make_product("acme-2").slug == "acme-2"


def test_delete_sent_again_with_its_key_answers_the_same(admin, product):
    first, second = (delete(admin, product, **{"Idempotency-Key": "once"}) for _ in range(2))
    assert (second.status_code, second.content) == (200, first.content)
    assert AuditRow.objects.filter(action="product_delete").count() == 1


def test_delete_that_cannot_be_recorded_does_not_happen(product, superuser):
    overrides.grant(product.pk, "pids", 70, reason="launch", expires_in_s=60, by=ADMIN)
    superuser.execute("ALTER TABLE audit_log ADD CONSTRAINT nothing_more CHECK (action <> 'product_delete') NOT VALID")
    try:
        with pytest.raises(Exception, match="nothing_more"):
            lifecycle.delete_product(product.pk, by=ADMIN)
    finally:
        superuser.execute("ALTER TABLE audit_log DROP CONSTRAINT nothing_more")
    assert products.authenticate(product.key).product == product
    assert PolicyOverride.objects.get().ended_at is None


@pytest.mark.parametrize("round_", range(6))
def test_provision_at_the_same_moment_is_counted_or_finds_no_product(product, round_):
    """Never an engine without a living product."""

    def ask(number):
        if number == 0:
            return lifecycle.delete_product(product.pk, by=ADMIN)
        return lifecycle.provision(product, f"user-{number}", by=ACME)

    deleted, *provisioned = in_parallel(ask, itertools.chain([0], range(1, 6)))
    opened = [result for result in provisioned if isinstance(result, Operation)]
    assert all(isinstance(result, Operation | ProductNotFound) for result in provisioned), provisioned
    assert Engine.objects.count() == len(opened)
    if opened:
        assert isinstance(deleted, ProductHasEngines)
        assert Product.objects.get().deleted_at is None
    else:
        assert deleted is None


def test_deletes_at_the_same_moment_are_one(product):
    results = in_parallel(lambda _: lifecycle.delete_product(product.pk, by=ADMIN), range(8))
    assert results.count(None) == 1
    assert all(result is None or isinstance(result, PolicyError) for result in results)
    assert AuditRow.objects.filter(action="product_delete").count() == 1
