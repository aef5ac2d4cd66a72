"""Platform keys over the API: what each may be used for, until when, and how one takes another's place."""

from datetime import timedelta
from importlib import import_module

import pytest
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.test import Client

from audit import actors
from audit.models import AuditRow
from engines.models import Kind
from policy import products
from policy.models import AdminKey, PlatformKey, Scope
from tests.conftest import Api
from tests.engines.registry import put_engine, put_operation
from tests.envelopes import assert_error

ANY_ID = "00000000-0000-4000-8000-000000000000"
NEEDS = {  # (method, path): the scopes of which the key has to have one
    ("POST", "/engines/alice/admit"): {"admit"},
    ("POST", "/engines/provision"): {"lifecycle"},
    ("DELETE", "/engines/alice"): {"lifecycle"},
    ("POST", "/engines/alice/start"): {"lifecycle"},
    ("POST", "/engines/alice/stop"): {"lifecycle"},
    ("POST", "/engines/alice/rotate-key"): {"lifecycle"},
    ("GET", "/engines/alice"): {"admit", "lifecycle"},  # the engine's key is in the answer
    ("GET", "/engines"): {"read"},
    ("GET", "/engines/alice/audit"): {"read"},
    ("GET", "/audit"): {"read"},
    ("GET", "/status"): {"read"},
    ("GET", "/metrics"): {"read"},
}


@pytest.fixture
def admin(db):
    """The REST API as the operator calls it."""
    return Client(headers={"X-Admin-Key": settings.ENV.admin_key})


def keys_of(product):
    return f"/products/{product.pk}/platform-keys"


def rotate(admin, product, **body):
    return admin.post(f"/products/{product.pk}/rotate-platform-key", body, "application/json")


def status_of(key):
    return Client().get("/status", headers={"X-Platform-Key": key}).status_code


def issue(product, *scopes, **options):
    return products.issue_key(product, by=actors.ADMIN, scopes=scopes or Scope.values, **options)[1]


# -- scopes --------------------------------------------------------------------------------------------------------------


def test_key_may_do_what_its_scope_says_and_nothing_else(product, subtests):
    for scope in Scope.values:
        api = Api(issue(product, scope))
        for (method, path), needed in NEEDS.items():
            with subtests.test(scope=scope, method=method, path=path):
                response = api.call(method, path)
                if scope in needed:
                    assert response.status_code != 403
                    continue
                error = assert_error(response, 403, "INSUFFICIENT_SCOPE")
                words = " or ".join(value for value in Scope.values if value in needed)
                assert (
                    error["message"]
                    == f"This platform key does not have the scope {words}. Use a key of the product that has it."
                )


def test_admit_with_its_flags_needs_admit_only(product):
    api = Api(issue(product, Scope.ADMIT))
    body = {"auto_provision": True, "auto_wake": True}
    assert api.call("POST", "/engines/alice/admit", body, Prefer="respond-async").status_code == 202


@pytest.mark.parametrize("scope", Scope.values)
def test_operation_is_shown_to_any_key_of_the_product(product, scope):
    operation = put_operation(put_engine(product), Kind.STOP)
    assert Api(issue(product, scope)).call("GET", f"/operations/{operation.pk}").status_code == 200


def test_key_with_several_scopes_has_each(product):
    api = Api(issue(product, Scope.READ, Scope.ADMIT))
    assert api.call("GET", "/status").status_code == api.call("POST", "/engines/alice/admit").status_code == 200
    assert_error(api.call("POST", "/engines/alice/stop"), 403, "INSUFFICIENT_SCOPE")


def test_scope_is_asked_after_the_key(product):
    for key in ("", "pk-sept-" + "x" * 43):
        assert_error(Api(key).call("POST", "/engines/alice/stop"), 401, "INVALID_PLATFORM_KEY")


@pytest.mark.parametrize("scopes", [[], ["all"], ["read", "write"]])
def test_database_refuses_scopes_that_are_none(product, scopes):
    with pytest.raises(IntegrityError), transaction.atomic():
        PlatformKey.objects.create(product=product, prefix="x", key_hash="0" * 64, scopes=scopes)


# -- issuing and listing -------------------------------------------------------------------------------------------------


def test_issue_answers_with_the_key_this_once(admin, product):
    response = admin.post(keys_of(product), {"scopes": ["read", "admit", "read"], "expires_in_s": 3600}, "application/json")
    body = response.json()
    key = PlatformKey.objects.get(pk=body["key_id"])
    assert body.keys() == {
        "key_id", "prefix", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at", "platform_api_key",
    }  # fmt: skip
    assert body["scopes"] == ["admit", "read"]
    assert key.expires_at - key.created_at == timedelta(hours=1)
    assert status_of(body["platform_api_key"]) == status_of(product.key) == 200
    row = AuditRow.objects.get(action="platform_key_issue", metadata__key_id=body["key_id"])
    assert (row.actor, row.product_slug) == ("admin", "acme")
    assert row.metadata == {
        "key_id": body["key_id"], "prefix": body["prefix"], "scopes": ["admit", "read"], "expires_at": body["expires_at"],
    }  # fmt: skip


def test_issue_without_a_word_gives_a_key_for_everything_without_an_end(admin, product):
    body = admin.post(keys_of(product), {}, "application/json").json()
    assert (body["scopes"], body["expires_at"]) == (["admit", "lifecycle", "read"], None)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"scopes": []}, "scopes"), ({"scopes": "read"}, "scopes"), ({"scopes": ["all"]}, "scopes"), ({"scopes": None}, "scopes"),
        ({"scopes": [["read"]]}, "scopes"), ({"expires_in_s": 0}, "expires_in_s"), ({"expires_in_s": -1}, "expires_in_s"),
        ({"expires_in_s": "60"}, "expires_in_s"), ({"expires_in_s": 1.5}, "expires_in_s"), ({"expires_in_s": True}, "expires_in_s"),  # noqa: E501
        ({"expires_in_s": 10**9}, "expires_in_s"), ({"scope": ["read"]}, "scope"),
    ],
)  # fmt: skip
def test_issue_and_rotate_name_the_field_that_is_wrong(admin, product, body, field):
    for response in (admin.post(keys_of(product), body, "application/json"), rotate(admin, product, **body)):
        assert assert_error(response, 400, "INVALID_REQUEST")["details"]["fields"].keys() == {field}
    assert PlatformKey.objects.count() == 1


def test_list_shows_every_key_and_opens_nothing(admin, product, other_product):
    plaintext = issue(product, Scope.READ)
    status_of(plaintext)
    response = admin.get(keys_of(product))
    listed = response.json()["platform_keys"]
    assert [key["scopes"] for key in listed] == [["read"], ["admit", "lifecycle", "read"]]
    assert [key["last_used_at"] is None for key in listed] == [False, True]
    for key in PlatformKey.objects.all():
        assert key.key_hash not in response.text
    assert plaintext not in response.text


def test_revoke_ends_the_key_with_the_next_request(admin, product):
    key = PlatformKey.objects.get()
    response = admin.delete(f"{keys_of(product)}/{key.pk}")
    assert response.json()["revoked_at"] is not None
    assert status_of(product.key) == 401
    assert_error(admin.delete(f"{keys_of(product)}/{key.pk}"), 404, "NOT_FOUND")
    assert AuditRow.objects.filter(action="platform_key_revoke").count() == 1


def test_keys_of_another_product_or_of_none_are_not_found(admin, product, other_product):
    theirs = PlatformKey.objects.get(product=other_product)
    assert_error(admin.delete(f"{keys_of(product)}/{theirs.pk}"), 404, "NOT_FOUND")
    assert_error(rotate(admin, product, key_id=str(theirs.pk)), 404, "NOT_FOUND")
    for response in (
        admin.get(f"/products/{ANY_ID}/platform-keys"),
        admin.post(f"/products/{ANY_ID}/platform-keys", {}, "application/json"),
        admin.delete(f"/products/{ANY_ID}/platform-keys/{theirs.pk}"),
        admin.post(f"/products/{ANY_ID}/rotate-platform-key", {}, "application/json"),
    ):
        assert_error(response, 404, "PRODUCT_NOT_FOUND")
    assert status_of(other_product.key) == status_of(product.key) == 200


# -- expiry and rotation ------------------------------------------------------------------------------------------------


def test_key_that_has_expired_is_refused(product):
    plaintext = issue(product, expires_in_s=60)
    assert status_of(plaintext) == 200
    PlatformKey.objects.filter(expires_at__isnull=False).update(expires_at=Now() + timedelta(milliseconds=-1))
    assert_error(Api(plaintext).call("GET", "/status"), 401, "INVALID_PLATFORM_KEY")


def test_rotate_lets_the_old_keys_work_on_for_the_overlap(admin, product):
    old = PlatformKey.objects.get()
    body = rotate(admin, product).json()
    old.refresh_from_db()
    new = PlatformKey.objects.get(pk=body["key_id"])
    assert status_of(product.key) == status_of(body["platform_api_key"]) == 200
    assert timedelta(hours=23.9) < old.expires_at - new.created_at <= timedelta(days=1)
    assert [gone["key_id"] for gone in body["replaced"]] == [str(old.pk)]
    assert body["replaced"][0]["expires_at"] is not None
    row = AuditRow.objects.get(action="platform_key_rotate")
    assert row.metadata == {
        "key_id": body["key_id"], "prefix": body["prefix"], "scopes": ["admit", "lifecycle", "read"],
        "replaced": [str(old.pk)], "overlap_s": 86400,
    }  # fmt: skip
    PlatformKey.objects.filter(pk=old.pk).update(expires_at=Now())
    assert (status_of(product.key), status_of(body["platform_api_key"])) == (401, 200)


def test_rotate_without_overlap_ends_the_old_keys_at_once(admin, product):
    second = issue(product)
    body = rotate(admin, product, overlap_s=0).json()
    assert (status_of(product.key), status_of(second), status_of(body["platform_api_key"])) == (401, 401, 200)
    assert len(body["replaced"]) == 2


def test_rotate_of_one_key_leaves_the_others_and_keeps_its_scopes(admin, product):
    mine = issue(product, Scope.READ)
    key = products.authenticate(mine)
    body = rotate(admin, product, key_id=str(key.pk), overlap_s=0, expires_in_s=60).json()
    assert body["scopes"] == ["read"]
    assert body["expires_at"] is not None
    assert (status_of(mine), status_of(product.key)) == (401, 200)
    assert_error(rotate(admin, product, key_id=str(key.pk)), 404, "NOT_FOUND")


def test_rotate_never_makes_a_key_live_longer(admin, product):
    short = issue(product, expires_in_s=60)
    before = products.authenticate(short).expires_at
    rotate(admin, product, overlap_s=3600)
    rotate(admin, product, overlap_s=86400)
    assert products.authenticate(short).expires_at == before


def test_rotate_of_a_product_without_a_living_key_gives_one_for_everything(admin, product):
    products.revoke_key(PlatformKey.objects.get().pk, by=actors.ADMIN)
    body = rotate(admin, product).json()
    assert (body["scopes"], body["replaced"]) == (["admit", "lifecycle", "read"], [])
    assert status_of(body["platform_api_key"]) == 200


def test_rotate_takes_other_scopes(admin, product):
    assert rotate(admin, product, scopes=["admit"]).json()["scopes"] == ["admit"]


@pytest.mark.parametrize("overlap_s", [-1, "0", 1.5, None, True, 10**9])
def test_rotate_refuses_an_overlap_that_is_none(admin, product, overlap_s):
    error = assert_error(rotate(admin, product, overlap_s=overlap_s), 400, "INVALID_REQUEST")
    assert error["details"]["fields"].keys() == {"overlap_s"}


def test_authenticate_is_one_read_by_index(product, django_assert_num_queries, superuser):
    products.authenticate(product.key)
    with django_assert_num_queries(1) as seen:
        assert products.authenticate(product.key).product.slug == "acme"
    plan = superuser.execute(f"SET enable_seqscan = off; EXPLAIN {seen[0]['sql']}")
    while plan.nextset():
        pass
    assert "key_hash" in " ".join(line for (line,) in plan.fetchall())


# -- what is kept -------------------------------------------------------------------------------------------------------------


def test_migration_takes_the_marker_off_what_is_kept(product, superuser):
    """Of keys from before, and of none twice: what is random in a key may look like a marker too."""
    of_this_version = PlatformKey.objects.get().prefix
    PlatformKey.objects.create(product=product, prefix="pk-sept-ab-_cd", key_hash="0" * 64)
    AdminKey.objects.create(name="ann", prefix="ak-sept-xyz123", key_hash="1" * 64)
    migration = import_module("policy.migrations.0010_prefixes_without_marker")
    for _ in range(2):
        for statement in migration.STRIP:
            superuser.execute(statement)
    assert set(PlatformKey.objects.values_list("prefix", flat=True)) == {of_this_version, "ab-_cd"}
    assert AdminKey.objects.get().prefix == "xyz123"


# -- idempotency ---------------------------------------------------------------------------------------------------------


def test_request_sent_again_gets_the_same_key_while_it_lives(admin, product):
    again = {"Idempotency-Key": "one"}
    first, second = (
        admin.post(f"/products/{product.pk}/rotate-platform-key", {}, "application/json", headers=again).json() for _ in range(2)
    )
    assert first == second
    assert PlatformKey.objects.count() == 2
    products.revoke_key(first["key_id"], by=actors.ADMIN)
    dead = admin.post(f"/products/{product.pk}/rotate-platform-key", {}, "application/json", headers=again)
    assert_error(dead, 404, "NOT_FOUND")
    assert first["platform_api_key"] not in dead.text


def test_request_that_failed_keeps_no_idempotency_key(admin, product):
    again = {"Idempotency-Key": "one"}
    register = {"slug": "acme", "display_name": "Acme"}
    assert_error(admin.post("/products/register", register, "application/json", headers=again), 409, "PRODUCT_SLUG_EXISTS")
    register["slug"] = "harbor"
    assert admin.post("/products/register", register, "application/json", headers=again).status_code == 200
