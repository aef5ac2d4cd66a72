"""Registering products and replacing their policies, with the admin key."""

import uuid

import pytest
from django.conf import settings
from django.test import Client

from audit.models import AuditRow
from engines.models import Engine
from policy.models import PlatformKey, Product
from tests.engines.registry import put_engine
from tests.envelopes import assert_error

WRONG_POLICIES = {
    "unknown key": ({"max_engine": 1}, "max_engine"),
    "wrong case": ({"MAX_ENGINES": 1}, "MAX_ENGINES"),
    "empty key": ({"": 1}, "policy."),
    "true": ({"max_engines": True}, "max_engines"),
    "false": ({"rate_limit_rpm": False}, "rate_limit_rpm"),
    "float": ({"max_engines": 10.5}, "max_engines"),
    "whole float": ({"max_engines": 10.0}, "max_engines"),
    "text": ({"rate_limit_rpm": "600"}, "rate_limit_rpm"),
    "negative": ({"rate_limit_rpm": -1}, "rate_limit_rpm"),
    "huge": ({"max_engines": 10**9 + 1}, "max_engines"),
    "very huge": ({"max_engines": 10**400}, "max_engines"),
    "null": ({"max_engines": None}, "max_engines"),
    "list": ({"max_engines": [1]}, "max_engines"),
    "object": ({"max_engines": {"value": 1}}, "max_engines"),
    "one right, one wrong": ({"max_engines": 1, "rate_limit_rpm": "x"}, "rate_limit_rpm"),
}
NO_OBJECTS = [[], [["max_engines", 1]], "", "{}", 0, 1, True, None]


@pytest.fixture
def admin(db):
    """The REST API as the operator calls it."""
    return Client(headers={"X-Admin-Key": settings.ENV.admin_key})


def register(admin, **body):
    return admin.post("/products/register", {"slug": "acme", "display_name": "Acme", **body}, "application/json")


def put(admin, product_id, policy):
    return admin.put(f"/products/{product_id}/policy", {"policy": policy}, "application/json")


def status_of(key):
    return Client().get("/status", headers={"X-Platform-Key": key}).status_code


def test_register_gives_a_key_that_works(admin):
    response = register(admin, policy={"max_engines": 1000, "rate_limit_rpm": 600})
    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {"product_id", "slug", "platform_api_key"}
    assert body["slug"] == "acme"
    assert body["platform_api_key"].startswith("pk-sept-")
    assert status_of(body["platform_api_key"]) == 200
    product = Product.objects.get(pk=body["product_id"])
    assert (product.display_name, product.policy) == ("Acme", {"max_engines": 1000, "rate_limit_rpm": 600})


def test_register_keeps_the_key_as_a_hash_only(admin):
    plaintext = register(admin).json()["platform_api_key"]
    key = PlatformKey.objects.get()
    assert plaintext not in str(vars(key))
    assert plaintext.startswith(f"pk-sept-{key.prefix}")
    assert len(key.prefix) == 6
    assert not any(plaintext in str(vars(row)) for row in AuditRow.objects.all())


def test_register_writes_its_rows(admin):
    response = register(admin, policy={"max_engines": 3})
    rows = AuditRow.objects.order_by("id")
    assert [(row.action, row.actor) for row in rows] == [("policy_register", "admin"), ("platform_key_issue", "admin")]
    assert rows[0].metadata == {"max_engines": 3}
    assert {(str(row.product_id), row.product_slug, row.user_id, row.engine_id) for row in rows} == {
        (response.json()["product_id"], "acme", None, None)
    }
    assert {row.request_id for row in rows} == {response.headers["X-Request-ID"]}


def test_register_defaults_to_no_limits(admin):
    register(admin)
    assert Product.objects.get().policy == {}


def test_register_refuses_a_slug_twice(admin):
    register(admin)
    assert_error(register(admin, display_name="Other"), 409, "PRODUCT_SLUG_EXISTS")
    assert Product.objects.get().display_name == "Acme"
    assert AuditRow.objects.count() == 2


@pytest.mark.parametrize("slug", ["ab", "a1-b", "0a", "a" * 63, "a--", "administrator"])
def test_register_takes_a_slug(admin, slug):
    assert register(admin, slug=slug).status_code == 200


def test_register_refuses_what_is_no_slug_or_name(admin, subtests):
    slugs = ("", "a", "A1", "-ab", "a_b", "a b", "a" * 64, "ab\n", " ab", "é1", "system", "admin", "a\0", 12, True, None, [], {})
    names = ("", "x" * 256, "a\0", "line\nbreak", 5, None, [])
    for field, value in [("slug", slug) for slug in slugs] + [("display_name", name) for name in names]:
        with subtests.test(field=field, value=repr(value)):
            assert field in str(assert_error(register(admin, **{field: value}), 400, "INVALID_REQUEST"))
    for missing in ("slug", "display_name"):
        body = {"slug": "acme", "display_name": "Acme"}
        del body[missing]
        assert missing in str(assert_error(admin.post("/products/register", body, "application/json"), 400, "INVALID_REQUEST"))
    assert not Product.objects.exists()


def test_wrong_policy_is_refused_naming_the_key(admin, product, subtests):
    for name, (policy, key) in WRONG_POLICIES.items():
        for send in (
            lambda policy=policy: register(admin, slug="new", policy=policy),
            lambda policy=policy: put(admin, product.pk, policy),
        ):
            with subtests.test(name):
                assert key in assert_error(send(), 400, "INVALID_REQUEST")["message"]
    product.refresh_from_db()
    assert product.policy == {}
    assert not Product.objects.filter(slug="new").exists()


def test_policy_that_is_no_object_is_refused(admin, product, subtests):
    for policy in NO_OBJECTS:
        with subtests.test(policy=repr(policy)):
            assert "policy" in str(assert_error(register(admin, slug="new", policy=policy), 400, "INVALID_REQUEST"))
            assert "policy" in str(assert_error(put(admin, product.pk, policy), 400, "INVALID_REQUEST"))
    assert_error(admin.put(f"/products/{product.pk}/policy", {}, "application/json"), 400, "INVALID_REQUEST")


def test_put_replaces_the_policy_whole(admin, product):
    for policy in (
        {"max_engines": 5, "rate_limit_rpm": 10},
        {"rate_limit_rpm": 20},
        {"max_engines": 0},
        {"max_engines": 10**9},
        {},
    ):
        response = put(admin, product.pk, policy)
        assert (response.status_code, response.json()) == (200, {"policy": policy})
        product.refresh_from_db()
        assert product.policy == policy
        row = AuditRow.objects.filter(action="policy_update").latest("id")
        assert (row.actor, row.product_slug, row.metadata) == ("admin", "acme", policy)


def test_put_refuses_a_product_that_is_none(admin):
    assert_error(put(admin, uuid.uuid4(), {}), 404, "PRODUCT_NOT_FOUND")


# -- what a policy does ----------------------------------------------------------------------------------------------------


def provision(api, user_id):
    return api.call("POST", "/engines/provision", {"user_id": user_id}, Prefer="respond-async")


def test_policy_is_effective_with_the_next_request(admin, api, product):
    assert provision(api, "alice").status_code == 202
    put(admin, product.pk, {"max_engines": 1})
    error = assert_error(provision(api, "bob"), 429, "QUOTA_EXCEEDED")
    assert error["message"] == "Product at max_engines limit (1)."
    assert error["details"] == {"rule": "max_engines", "limit": 1, "value": 1}
    put(admin, product.pk, {"max_engines": 2})
    assert provision(api, "bob").status_code == 202


def test_tightened_limit_leaves_engines_alone(admin, api, product):
    for user_id in ("alice", "bob", "carol"):
        put_engine(product, user_id)
    put(admin, product.pk, {"max_engines": 1})
    assert api.call("GET", "/engines").json()["total"] == 3
    assert api.call("POST", "/engines/bob/admit", {"auto_provision": True}).json()["admitted"] is True
    error = assert_error(provision(api, "dave"), 429, "QUOTA_EXCEEDED")
    assert error["details"] == {"rule": "max_engines", "limit": 1, "value": 3}


@pytest.mark.parametrize("status", ["provisioning", "running", "sleeping", "stopped", "failed", "destroying"])
def test_quota_counts_every_state_but_destroyed(admin, api, product, status):
    put(admin, product.pk, {"max_engines": 1})
    put_engine(product, "gone", "destroyed", destroyed_at="2026-01-01T00:00:00Z", key_hash="", key_ciphertext="")
    engine = put_engine(product, "bob", status)
    assert_error(provision(api, "alice"), 429, "QUOTA_EXCEEDED")
    Engine.objects.filter(pk=engine.pk).update(status="destroyed", destroyed_at="2026-01-01T00:00:00Z")
    assert provision(api, "alice").status_code == 202


def test_quota_of_none_refuses_the_first_engine(admin, api, product):
    put(admin, product.pk, {"max_engines": 0})
    error = assert_error(provision(api, "alice"), 429, "QUOTA_EXCEEDED")
    assert error["message"] == "Product at max_engines limit (0)."
    assert not Engine.objects.exists()


def test_quota_is_each_products_own(admin, api, product, other_product):
    put(admin, product.pk, {"max_engines": 1})
    put_engine(other_product, "alice")
    assert provision(api, "alice").status_code == 202


def test_second_engine_of_a_user_is_a_conflict_at_the_limit_too(admin, api, product):
    put_engine(product, "alice")
    put(admin, product.pk, {"max_engines": 1})
    assert_error(provision(api, "alice"), 409, "ENGINE_ALREADY_EXISTS")


@pytest.mark.parametrize("way", ["provision", "admit"])
def test_refusal_by_quota_is_a_row(admin, api, product, way):
    put(admin, product.pk, {"max_engines": 0})
    if way == "provision":
        response = provision(api, "alice")
    else:
        response = api.call("POST", "/engines/alice/admit", {"auto_provision": True})
    assert_error(response, 429, "QUOTA_EXCEEDED")
    row = AuditRow.objects.get(action__endswith="_denied")
    assert (row.action, row.actor, row.user_id, row.engine_id) == (f"{way}_denied", "acme", "alice", None)
    assert row.metadata == {"rule": "max_engines", "limit": 0, "value": 0}
    assert (row.product_id, row.request_id) == (product.pk, response.headers["X-Request-ID"])


# -- overrides -----------------------------------------------------------------------------------------------------------------

GRANT = {"rule": "max_engines", "value": 7, "reason": "launch", "expires_in_s": 60}


def grant(admin, product, headers=None, **body):
    return admin.post(f"/products/{product.pk}/overrides", {**GRANT, **body}, "application/json", headers=headers or {})


def end(admin, product, override_id):
    return admin.delete(f"/products/{product.pk}/overrides/{override_id}")


def test_override_is_granted_listed_and_ended(admin, product):
    granted = grant(admin, product).json()
    assert {**GRANT, **granted, "expires_in_s": 60} == {**granted, **GRANT}
    assert (granted["granted_by"], granted["ended_at"]) == ("admin", None)
    assert admin.get(f"/products/{product.pk}/overrides").json() == {"overrides": [granted]}
    ended = end(admin, product, granted["override_id"]).json()
    assert ended["ended_at"]
    assert admin.get(f"/products/{product.pk}/overrides").json() == {"overrides": [ended]}
    assert_error(end(admin, product, granted["override_id"]), 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("field", "value"),
    [("rule", "colour"), ("rule", 1), ("value", -1), ("value", None), ("reason", ""), ("reason", "x" * 201),
     ("expires_in_s", 0), ("expires_in_s", 366 * 24 * 3600 + 1), ("expires_in_s", "60")],
)  # fmt: skip
def test_override_that_cannot_be_is_refused(admin, product, field, value):
    assert_error(grant(admin, product, **{field: value}), 400, "INVALID_REQUEST")
    assert not Product.objects.get().overridden


def test_override_of_no_product_is_not_found(admin, product):
    granted = grant(admin, product).json()
    product.pk = uuid.uuid4()
    for answer in (
        grant(admin, product),
        admin.get(f"/products/{product.pk}/overrides"),
        end(admin, product, granted["override_id"]),
    ):
        assert_error(answer, 404, "PRODUCT_NOT_FOUND")


def test_override_sent_again_with_its_key_is_granted_once(admin, product):
    first, second = (grant(admin, product, {"Idempotency-Key": "once"}) for _ in range(2))
    assert first.content == second.content
    assert AuditRow.objects.filter(action="policy_override_grant").count() == 1


def test_override_is_in_force_for_the_next_request(admin, product):
    put_engine(product)
    headers = {"X-Platform-Key": product.key}
    granted = grant(admin, product, rule="rate_limit_rpm", value=0).json()
    assert_error(Client().post("/engines/alice/admit", {}, "application/json", headers=headers), 429, "RATE_LIMITED")
    end(admin, product, granted["override_id"])
    assert Client().post("/engines/alice/admit", {}, "application/json", headers=headers).status_code == 200
