"""Who called: on the rows and operations of every kind of caller, and in what a product sees of them."""

from uuid import UUID, uuid4

import pytest
import structlog
from django.conf import settings
from django.core.management import call_command
from django.test import Client

from audit.models import AuditRow
from common import context
from config import celery
from engines.models import Operation
from engines.tasks import dispatch
from policy import admin_keys
from policy.models import PlatformKey
from tests.envelopes import assert_error
from tests.staff import log_in

AGENT, BEHALF = "acme-backend/3.1", "ada@acme.example"
HEADERS = {"User-Agent": AGENT, "X-On-Behalf-Of": BEHALF, "X-Request-ID": "r-1"}
OF_CALL = ("request_id", "call_id", "key_id", "client_ip", "user_agent", "on_behalf_of")


def seen(found):
    """The columns of the call, of a row or an operation."""
    return {name: getattr(found, name) for name in OF_CALL}


def sent(response, key_id=None, agent=AGENT, behalf=BEHALF):
    """The columns of the call, as its caller knows them."""
    call_id, request_id = UUID(response.headers["X-Call-ID"]), response.headers["X-Request-ID"]
    return dict(zip(OF_CALL, (request_id, call_id, key_id, "127.0.0.1", agent, behalf), strict=True))


def newest(action):
    return AuditRow.objects.filter(action=action).latest("id")


# -- every kind of caller ----------------------------------------------------------------------------------------------


def test_product_is_named_on_the_rows_that_a_worker_writes(api, product, carry_out):
    response = api.post(
        "/engines/provision", {"user_id": "alice"}, "application/json", headers={**HEADERS, "Prefer": "respond-async"}
    )
    expected = sent(response, PlatformKey.objects.get().pk)
    operation = Operation.objects.get()
    assert seen(operation) == expected
    carry_out(operation)
    assert [seen(row) for row in AuditRow.objects.filter(engine_id=operation.engine_id).order_by("id")] == [expected] * 2


def test_product_is_named_on_the_row_of_its_refused_admit(api, product):
    """The hot path answers without the framework, and has to name the key all the same."""
    product.suspension_reason, product.suspended_at = "unpaid", product.created_at
    product.save()
    response = api.post("/engines/alice/admit", {}, "application/json", headers=HEADERS)
    assert_error(response, 403, "PRODUCT_SUSPENDED")
    assert seen(newest("admit_denied")) == sent(response, PlatformKey.objects.get().pk)


def test_admin_key_is_named_and_the_environments_key_has_no_id(db):
    for key, key_id in [(settings.ENV.admin_key, None), *_issued()]:
        body = {"slug": "named" if key_id else "unnamed", "display_name": "Acme"}
        response = Client(headers={"X-Admin-Key": key}).post("/products/register", body, "application/json", headers=HEADERS)
        assert response.status_code == 200
        assert seen(newest("policy_register")) == sent(response, key_id)


def _issued():
    key, plaintext = admin_keys.issue("ci", by="admin")
    yield plaintext, key.pk


def test_staff_are_named_with_their_address_and_no_key(running_engine, carry_out):
    staff = log_in("ada", "engines.operate_engine", headers={"User-Agent": "Firefox"})
    response = staff.post(f"/admin/engines/engine/{running_engine.pk}/stop/", {"reason": "quiet"})
    expected = sent(response, agent="Firefox", behalf=None)
    operation = Operation.objects.get(kind="stop")
    assert seen(operation) == expected
    carry_out(operation)
    assert (newest("stop").actor, seen(newest("stop"))) == ("admin:ada", expected)


def test_command_is_a_single_call_of_nobody(db):
    call_command("rotate_master_key")
    row = newest("master_key_rotate")
    assert seen(row) == {**dict.fromkeys(OF_CALL), "call_id": row.call_id}
    assert row.call_id is not None


def test_refused_key_is_nobodys(api, product):
    """A call says nothing of a key before the key is found to be valid."""
    response = api.get("/status", headers={"X-Platform-Key": "pk-sept-wrong"})
    assert_error(response, 401, "INVALID_PLATFORM_KEY")
    assert UUID(response.headers["X-Call-ID"])


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_call_has_an_id_of_ours_whatever_the_caller_sends(api):
    answers = [api.get("/status", headers={"X-Request-ID": "r-1", "X-Call-ID": "mine"}) for _ in range(2)]
    assert {answer.headers["X-Request-ID"] for answer in answers} == {"r-1"}
    assert len({UUID(answer.headers["X-Call-ID"]) for answer in answers}) == 2


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129])
def test_request_without_an_id_has_the_id_of_its_call(api, given):
    answer = api.get("/status", headers={} if given is None else {"X-Request-ID": given})
    assert answer.headers["X-Request-ID"] == answer.headers["X-Call-ID"]


@pytest.mark.parametrize("path", ["/nowhere", "/admin/", "/schema/", "/health"])
def test_every_answer_names_its_call(client, db, path):
    assert UUID(client.get(path).headers["X-Call-ID"])


def test_ids_in_a_message_reach_the_log_lines_and_no_row(db):
    """Whoever reaches Valkey can send messages: what a message says must not be in the record."""
    forged = {"request_id": "forged", "call_id": str(uuid4())}
    dispatch.request.update(forged)
    try:
        celery.begin_call(dispatch)
        assert structlog.contextvars.get_contextvars() == forged
        assert context.current().request_id is None
        first = context.current().call_id
        celery.begin_call(dispatch)
        assert context.current().call_id != first
        dispatch.request.update(request_id="two\nlines", call_id="forged")
        celery.begin_call(dispatch)
        assert structlog.contextvars.get_contextvars() == {}
    finally:
        dispatch.request.clear()
        celery.end_call()
    assert context.known() is None


# -- headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("x" * 201, "x" * 200),
        ("a\x07b\x7f\u0085c" + "d" * 200, "abc" + "d" * 197),
        ("Grüße/1.0".encode().decode("latin-1"), "Grüße/1.0"),
        ("Gr\xfc\xdfe/1.0", "Grüße/1.0"),
        ("\t\x1b", None),
        ("", None),
    ],
)
def test_user_agent_is_kept_in_so_far_as_it_shows(api, given, kept):
    api.post("/engines/provision", {"user_id": "alice"}, "application/json", HTTP_USER_AGENT=given, HTTP_PREFER="respond-async")
    assert Operation.objects.get().user_agent == kept


@pytest.mark.parametrize("given", ["x" * 255, "Zoë", "Ада Лавлейс <ada@acme.example>", "ada; sudo"])
def test_on_behalf_of_is_kept_as_it_is(api, given):
    behalf = given.encode().decode("latin-1")
    api.post(
        "/engines/provision", {"user_id": "alice"}, "application/json", HTTP_X_ON_BEHALF_OF=behalf, HTTP_PREFER="respond-async"
    )
    assert {Operation.objects.get().on_behalf_of, newest("provision_requested").on_behalf_of} == {given}


@pytest.mark.parametrize("given", ["x" * 256, "ada\x1b[31m", "ada\x00", "\u202eada".encode().decode("latin-1"), "é" * 256])
@pytest.mark.parametrize("path", ["/engines/alice/admit", "/engines/provision", "/admin/", "/nowhere"])
def test_on_behalf_of_that_no_row_can_hold_is_refused(api, path, given):
    response = api.post(path, {"user_id": "alice"}, "application/json", HTTP_X_ON_BEHALF_OF=given)
    error = assert_error(response, 400, "INVALID_REQUEST")
    assert error["message"].startswith("X-On-Behalf-Of: must be at most 255 printable characters")
    assert path == "/admin/" or response.headers["Cache-Control"] == "no-store"
    assert not Operation.objects.exists()


def test_empty_on_behalf_of_is_nobody(api):
    api.post("/engines/provision", {"user_id": "alice"}, "application/json", HTTP_X_ON_BEHALF_OF="", HTTP_PREFER="respond-async")
    assert Operation.objects.get().on_behalf_of is None


@pytest.mark.parametrize(("address", "kept"), [("::ffff:203.0.113.7", "203.0.113.7"), ("2001:db8::7", "2001:db8::7"), ("", None)])
def test_address_is_kept_as_postgresql_takes_it(api, address, kept):
    api.post("/engines/provision", {"user_id": "alice"}, "application/json", REMOTE_ADDR=address, HTTP_PREFER="respond-async")
    assert Operation.objects.get().client_ip == kept


# -- pages of the admin ------------------------------------------------------------------------------------------------


def test_pages_show_staff_who_called(api, product, carry_out):
    response = api.post(
        "/engines/provision", {"user_id": "alice"}, "application/json", headers={**HEADERS, "Prefer": "respond-async"}
    )
    operation = carry_out(Operation.objects.get())
    call_id, key_id = response.headers["X-Call-ID"], str(PlatformKey.objects.get().pk)
    staff = log_in("ada")
    row = newest("provision")
    for page in (f"/admin/audit/auditrow/{row.pk}/change/", f"/admin/engines/operation/{operation.pk}/change/"):
        text = staff.get(page).text
        assert all(told in text for told in (call_id, key_id, "127.0.0.1", AGENT, BEHALF)), page
    assert f"for {BEHALF}" in staff.get(f"/admin/engines/engine/{operation.engine_id}/change/").text
    assert f"acme for {BEHALF}" in staff.get("/admin/audit/auditrow/").text
    for term in (f"call:{call_id}", f"key:{key_id}", "address:127.0.0.1", f"behalf:{BEHALF}", call_id):
        found = staff.get("/admin/audit/auditrow/", {"q": term}).text
        assert (f"/{row.pk}/change/" in found) == (term != call_id), (
            term
        )  # a bare id is no call: this request has an id of its own
    assert f"/{row.pk}/change/" not in staff.get("/admin/audit/auditrow/", {"q": "address:192.0.2.1"}).text
    assert staff.get("/admin/audit/auditrow/", {"q": "address:nowhere"}).status_code == 200
