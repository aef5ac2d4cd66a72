"""Named admin keys: issued, used, seen in the log, and refused once they are revoked."""

import re
import uuid
from datetime import timedelta

import pytest
from django.conf import settings
from django.db.models.functions import Now
from django.test import Client

from audit import actors
from audit.models import AuditRow
from policy import admin_keys
from policy.models import AdminKey
from tests.engines.crew import in_parallel
from tests.envelopes import assert_error
from tests.staff import log_in

LIST = "/admin/policy/adminkey/"
VIEW, OPERATE = "policy.view_adminkey", "policy.operate_adminkey"
KEY = re.compile(r'id="key">(ak-sept-[\w-]+)<')


@pytest.fixture
def admin(db):
    """The REST API as the operator calls it with the environment's key."""
    return caller(settings.ENV.admin_key)


def caller(key):
    return Client(headers={"X-Admin-Key": key})


def issue(client, name="ci", **body):
    return client.post("/admin-keys", {"name": name, **body}, "application/json")


def rows(action):
    return list(AuditRow.objects.filter(action=action).order_by("id"))


def test_issue_answers_with_a_key_that_works(admin):
    body = issue(admin, expires_in_s=3600).json()
    assert body.keys() == {
        "key_id", "name", "prefix", "created_at", "expires_at", "last_used_at", "revoked_at", "admin_api_key",
    }  # fmt: skip
    assert body["admin_api_key"].startswith("ak-sept-")
    assert caller(body["admin_api_key"]).get("/admin-keys").status_code == 200
    [row] = rows("admin_key_issue")
    assert row.actor == "admin"
    assert row.metadata == {
        "key_id": body["key_id"], "name": "ci", "prefix": body["prefix"], "expires_at": body["expires_at"],
    }  # fmt: skip


def test_issue_keeps_the_key_as_a_hash_only(admin):
    plaintext = issue(admin).json()["admin_api_key"]
    assert plaintext not in str(vars(AdminKey.objects.get()))
    assert plaintext not in admin.get("/admin-keys").text
    assert AdminKey.objects.get().key_hash not in admin.get("/admin-keys").text


def test_rows_of_a_call_name_the_key_it_came_with(admin):
    named = caller(issue(admin).json()["admin_api_key"])
    registered = named.post("/products/register", {"slug": "acme", "display_name": "Acme"}, "application/json").json()
    product = f"/products/{registered['product_id']}"
    named.put(f"{product}/policy", {"policy": {"max_engines": 3}}, "application/json")
    named.put(f"{product}/engine-env", {"env": {"A": "1"}}, "application/json")
    key = named.post(f"{product}/platform-keys", {}, "application/json").json()
    named.post(f"{product}/rotate-platform-key", {}, "application/json")
    named.delete(f"{product}/platform-keys/{key['key_id']}")
    second = issue(named, "second").json()
    named.delete(f"/admin-keys/{second['key_id']}")
    written = AuditRow.objects.filter(metadata__admin_key="ci")
    assert {row.action for row in written} == {
        "policy_register", "policy_update", "engine_env_update", "platform_key_issue", "platform_key_rotate",
        "platform_key_revoke", "admin_key_issue", "admin_key_revoke",
    }  # fmt: skip
    assert {row.actor for row in written} == {"admin"}
    admin.put(f"{product}/policy", {"policy": {}}, "application/json")
    assert rows("policy_update")[-1].metadata == {}


def test_revoke_ends_the_key_with_the_next_request_and_not_the_environments(admin):
    issued = issue(admin).json()
    named = caller(issued["admin_api_key"])
    revoked = named.delete(f"/admin-keys/{issued['key_id']}")  # by itself: why not
    assert revoked.json()["revoked_at"] is not None
    assert_error(named.get("/admin-keys"), 401, "INVALID_ADMIN_KEY")
    assert admin.get("/admin-keys").status_code == 200
    assert_error(admin.delete(f"/admin-keys/{issued['key_id']}"), 404, "NOT_FOUND")
    assert_error(admin.delete(f"/admin-keys/{uuid.uuid4()}"), 404, "NOT_FOUND")
    assert [row.metadata["name"] for row in rows("admin_key_revoke")] == ["ci"]


def test_key_that_has_expired_is_refused(admin):
    plaintext = issue(admin, expires_in_s=60).json()["admin_api_key"]
    AdminKey.objects.update(expires_at=Now() - timedelta(seconds=1))
    assert_error(caller(plaintext).get("/admin-keys"), 401, "INVALID_ADMIN_KEY")


def test_use_is_marked(admin):
    plaintext = issue(admin).json()["admin_api_key"]
    assert admin.get("/admin-keys").json()["admin_keys"][0]["last_used_at"] is None
    assert caller(plaintext).get("/admin-keys").json()["admin_keys"][0]["last_used_at"] is not None


def test_name_is_one_keys_until_that_is_revoked(admin):
    first = issue(admin).json()
    assert "'ci'" in assert_error(issue(admin), 409, "ADMIN_KEY_EXISTS")["message"]
    admin.delete(f"/admin-keys/{first['key_id']}")
    assert issue(admin).status_code == 200
    assert [key["name"] for key in admin.get("/admin-keys").json()["admin_keys"]] == ["ci", "ci"]
    assert len(rows("admin_key_issue")) == 2


def test_issue_at_once_gives_one_key_of_a_name(db):
    results = in_parallel(lambda _: admin_keys.issue("ci", by=actors.ADMIN), range(6))
    assert sorted(type(result).__name__ for result in results) == ["AdminKeyExists"] * 5 + ["tuple"]
    assert AdminKey.objects.count() == len(rows("admin_key_issue")) == 1


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "a\0", 7, None, []])
def test_issue_refuses_a_name_that_is_none(admin, name):
    assert "name" in str(assert_error(issue(admin, name), 400, "INVALID_REQUEST"))
    assert not AdminKey.objects.exists()


def test_platform_key_and_hash_are_no_admin_key(admin, product):
    issue(admin)
    for wrong in (product.key, AdminKey.objects.get().key_hash, AdminKey.objects.get().prefix, "ak-sept-" + "x" * 43):
        assert_error(caller(wrong).get("/admin-keys"), 401, "INVALID_ADMIN_KEY")


# -- in the admin --------------------------------------------------------------------------------------------------------


def test_staff_issue_a_key_that_is_shown_once(db):
    client = log_in("rita", VIEW, OPERATE)
    assert "Issue admin key" in client.get(LIST).text
    response = client.post(f"{LIST}issue/", {"name": "deploys", "expires_in_days": "30"})
    key = KEY.search(response.text)[1]
    assert "no-store" in response["Cache-Control"]
    assert caller(key).get("/admin-keys").status_code == 200
    [row] = rows("admin_key_issue")
    assert (row.actor, row.metadata["name"]) == ("admin:rita", "deploys")
    shown = AdminKey.objects.get()
    assert shown.expires_at - shown.created_at == timedelta(days=30)
    for address in (LIST, f"{LIST}{shown.pk}/change/", "/admin/audit/auditrow/"):
        assert key not in client.get(address).text
    assert "exists; revoke it" in client.post(f"{LIST}issue/", {"name": "deploys"}).text


def test_staff_are_asked_before_they_revoke(db):
    key, plaintext = admin_keys.issue("ci", by=actors.ADMIN)
    client = log_in("rita", VIEW, OPERATE)
    address = f"{LIST}{key.pk}/revoke/"
    assert "Requests with this key are refused" in client.get(address).text
    assert admin_keys.authenticate(plaintext) == key
    assert client.post(address)["Location"] == f"{LIST}{key.pk}/change/"
    assert admin_keys.authenticate(plaintext) is None
    assert rows("admin_key_revoke")[0].actor == "admin:rita"
    assert "revoke/" not in client.get(f"{LIST}{key.pk}/change/").text
    assert client.post(address).status_code == 302
    assert len(rows("admin_key_revoke")) == 1


def test_staff_without_the_permission_only_look(db):
    key, plaintext = admin_keys.issue("ci", by=actors.ADMIN)
    client = log_in("rita", VIEW, "policy.operate_product")
    for address in (LIST, f"{LIST}{key.pk}/change/"):
        text = client.get(address).text
        assert not re.search(r"issue/|revoke/", text)
        assert key.key_hash not in text
        assert plaintext not in text
    for address in ("issue/", f"{key.pk}/revoke/"):
        assert client.get(f"{LIST}{address}").status_code == client.post(f"{LIST}{address}").status_code == 403
    assert admin_keys.authenticate(plaintext) == key
    assert log_in("sam").get(LIST).status_code == 403


def test_nothing_is_changed_by_django_even_for_a_superuser(db):
    key, _ = admin_keys.issue("ci", by=actors.ADMIN)
    client = log_in("root", superuser=True)
    assert client.post(f"{LIST}add/", {"name": "x"}).status_code == 403
    assert client.post(f"{LIST}{key.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.post(f"{LIST}{key.pk}/change/", {"name": "x"}).status_code == 405
    assert AdminKey.objects.get().name == "ci"
