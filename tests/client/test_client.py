"""The client on the real stack."""

import dataclasses
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from audit.models import AuditRow
from engines.models import Operation
from fleet.openapi import document
from policy.models import IdempotencyKey
from roundhouse_client import ApiError, Client, Operator, StillRunning, Unreachable, results
from tests import waiting
from tests.engines.api.test_server import USER_IDS
from tests.engines.registry import put_engine


def test_every_operation_of_the_api_is_a_method():
    assert {endpoint.name for endpoint in document.ENDPOINTS} <= {*dir(Client), *dir(Operator)}


def test_every_field_of_an_answer_is_in_its_result():
    schemas = document.make()["components"]["schemas"]
    for name, schema in schemas.items():
        kind = getattr(results, {"EngineWithKey": "Engine", "Registered": "Registered"}.get(name, name), None)
        if kind is not None and "properties" in schema:
            assert set(schema["required"]) <= {each.name for each in dataclasses.fields(kind)}, name


# -- engines -------------------------------------------------------------------------------------------------------------------


def test_engine_goes_through_its_life(client):
    made = client.provision("alice")
    assert made.api_key.startswith("sk-sept-")
    assert made.api_key not in repr(made)
    engine = client.get_engine("alice")
    assert (engine.engine_id, engine.status, engine.api_key) == (made.engine_id, "running", made.api_key)
    assert engine.created_at.tzinfo is not None
    assert (engine.disk.limit_mb, engine.disk.exceeded) == (1024, False)
    assert client.stop("alice").status == "stopped"
    assert client.admit("alice").reason == "engine_stopped"
    assert client.start("alice").url.startswith("http")
    assert client.rotate_key("alice").api_key != made.api_key
    assert client.admit("alice").engine.user_id == "alice"
    assert client.get_status().by_status["running"] == 1
    assert client.get_metrics().total_provisions == 1
    assert (client.get_health().status, client.get_health().disk) == ("ok", "ok")
    assert client.destroy("alice").engine_id == made.engine_id
    assert client.list_audit_of_user("alice").results[0].action == "destroy"


def test_refusal_is_an_error_that_says_all(client):
    with pytest.raises(ApiError) as raised:
        client.get_engine("nobody")
    assert (raised.value.code, raised.value.status) == ("ENGINE_NOT_FOUND", 404)
    assert re.fullmatch(r"[0-9a-f-]{36}", raised.value.request_id)
    with pytest.raises(ApiError) as raised:
        client.list_engines("flying")
    assert raised.value.details["fields"].keys() == {"status"}


def test_wait_that_is_over_names_the_operation(client):
    with pytest.raises(StillRunning) as raised:
        client.provision("alice", wait_s=0)
    waiting.until(lambda: client.get_operation(raised.value.operation_id).state == "succeeded", 20)
    assert client.get_operation(raised.value.operation_id).steps


def test_user_ids_arrive_as_they_are(client, acme):
    for user_id in USER_IDS:
        put_engine(acme, user_id)
        assert client.get_engine(user_id).user_id == user_id
    for impossible in ("", ".", ".."):
        with pytest.raises(ValueError, match="not a user id"):
            client.destroy(impossible)
    assert {engine.user_id for engine in client.engines()} == set(USER_IDS)
    assert client.list_engines().total == len(USER_IDS)


def test_logs_are_the_engines_own(client):
    client.provision("alice")
    assert client.get_logs("alice", 1).lines


def test_logs_are_followed_by_what_is_new(client):
    client.provision("alice")
    lines = client.follow_logs("alice", 1, every_s=0.05)
    assert "boot 1" in next(lines)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (client.stop("alice"), client.start("alice")))
        assert next(line for line in lines if "boot 2" in line)


def test_explain_says_what_would_happen(client, operator, acme):
    told = client.explain("provision", "alice", "acme/agent:1")
    assert (told.allowed, told.would, told.refusal) == (False, "refuse", "POLICY_DENIED")
    assert {decision.rule: decision.allowed for decision in told.decisions} == {
        "suspended": True, "images": False, "max_engines": True,
    }  # fmt: skip
    assert client.explain("admit", "alice", auto_provision=True).would == "provision"
    assert operator.explain(str(acme.pk), "admit", "alice").refusal == "engine_not_found"
    assert client.list_engines().total == 0


# -- record --------------------------------------------------------------------------------------------------------------------


def test_audit_comes_page_by_page_and_whole(client):
    client.provision("a/b")
    client.stop("a/b")
    client.destroy("a/b")
    ids = [row.id for row in client.audit(page_size=2, user_id="a/b")]
    assert len(ids) == len(set(ids)) == 5
    assert [row.action for row in client.audit(action="stop")] == ["stop"]


def test_rows_name_whom_the_client_acts_for(server, acme, operator):
    with Client(server.url, acme.key, on_behalf_of="Zoë <zoe@acme.example>") as client:
        client.provision("alice")
        [row] = client.audit(action="provision", user_id="alice")
    assert row.on_behalf_of == "Zoë <zoe@acme.example>"
    assert row.key_id == str(acme.keys.get().pk)
    assert row.written_at > row.timestamp
    seen = operator.list_audit(product_id=str(acme.pk), action="policy_register").results
    assert [each.product_slug for each in seen] == [acme.slug]
    assert row.id in {each.id for each in operator.audit(call_id=row.call_id)}


def test_audit_is_followed_from_what_is_new(client, acme):
    client.provision("alice")
    rows = client.follow_audit(1, actor=acme.slug)  # without the rows of probes
    assert next(rows).action == "provision"
    with ThreadPoolExecutor(1) as pool:
        pool.submit(client.stop, "alice")
        assert next(rows).action == "stop"


# -- the operator --------------------------------------------------------------------------------------------------------------


def test_operator_keeps_products_and_keys(operator, server):
    product = operator.register_product("globex", "Globex", {"max_engines": 5})
    assert operator.replace_policy(product.product_id, {"max_engines": 6}) == {"max_engines": 6}
    issued = operator.issue_platform_key(product.product_id, ["read"], expires_in_s=3600)
    assert issued.scopes == ["read"]
    with Client(server.url, issued.platform_api_key) as reader, pytest.raises(ApiError) as raised:
        reader.provision("alice")
    assert raised.value.code == "INSUFFICIENT_SCOPE"
    assert operator.revoke_platform_key(product.product_id, issued.key_id).revoked_at
    rotated = operator.rotate_platform_key(product.product_id, overlap_s=60)
    assert [old.prefix for old in rotated.replaced] == [product.platform_api_key.removeprefix("pk-sept-")[:6]]
    assert len(operator.list_platform_keys(product.product_id)) == 3
    assert operator.replace_engine_env(product.product_id, {"MODEL": "x"}).names == ["MODEL"]
    assert operator.get_engine_env(product.product_id).version == 1
    key = operator.issue_admin_key("ann")
    with Operator(server.url, key.admin_api_key) as ann:
        assert [each.name for each in ann.list_admin_keys()] == ["ann"]
    assert operator.revoke_admin_key(key.key_id).revoked_at


def test_operator_overrides_a_rule_for_a_time(operator, client, acme):
    product_id = str(acme.pk)
    granted = operator.grant_override(product_id, "max_engines", 0, "full", 3600)
    assert (granted.rule, granted.value, granted.granted_by, granted.ended_at) == ("max_engines", 0, "admin", None)
    assert granted.expires_at > granted.created_at
    with pytest.raises(ApiError, match="QUOTA_EXCEEDED"):
        client.provision("alice")
    assert operator.end_override(product_id, granted.override_id).ended_at
    assert [each.override_id for each in operator.list_overrides(product_id)] == [granted.override_id]
    assert client.provision("alice", wait_s=20).status == "running"


def test_operator_suspends_and_resumes_a_product(operator, client, acme):
    put_engine(acme)
    suspended = operator.suspend_product(str(acme.pk), "unpaid", stop_engines=True)
    assert (suspended.reason, suspended.stopping, suspended.busy) == ("unpaid", 1, 0)
    with pytest.raises(ApiError, match="PRODUCT_SUSPENDED") as raised:
        client.admit("alice")
    assert raised.value.code == "PRODUCT_SUSPENDED"
    assert operator.resume_product(str(acme.pk), "paid").suspended_at is None
    assert client.admit("bob").reason == "engine_not_found"


def test_operator_deletes_a_product_without_engines(operator, client, acme):
    client.provision("alice")
    with pytest.raises(ApiError) as raised:
        operator.delete_product(str(acme.pk))
    assert (raised.value.code, raised.value.details) == ("PRODUCT_HAS_ENGINES", {"engines": 1})
    client.destroy("alice")
    assert operator.delete_product(str(acme.pk)).status == "deleted"
    with pytest.raises(ApiError, match="INVALID_PLATFORM_KEY"):
        client.get_status()


# -- retries -------------------------------------------------------------------------------------------------------------------


def test_rate_limit_says_how_long_to_wait(server, acme):
    acme.policy = {"rate_limit_rpm": 0}
    acme.save()
    with Client(server.url, acme.key, retries=0) as impatient, pytest.raises(ApiError) as raised:
        impatient.admit("alice")
    assert raised.value.code == "RATE_LIMITED"
    assert raised.value.retry_after_s > 0


def test_quota_is_not_tried_again(client, acme):
    acme.policy = {"max_engines": 0}
    acme.save()
    with pytest.raises(ApiError, match="QUOTA_EXCEEDED"):
        client.provision("alice")
    assert AuditRow.objects.filter(product_id=acme.pk, action="provision_denied").count() == 1


def test_restart_of_the_web_server_costs_no_call_and_doubles_none(client, server, acme):
    """Calls under way when the server is killed are sent again under their key, and done once."""
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(client.provision, f"user-{number}") for number in range(8)]
        waiting.until(lambda: Operation.objects.filter(engine__product=acme).exists(), 20)
        server.kill("web")
        made = [call.result() for call in calls]
    assert len({engine.engine_id for engine in made}) == 8
    assert Operation.objects.filter(engine__product=acme).count() == 8
    assert IdempotencyKey.objects.filter(caller=str(acme.pk)).count() == 8


def test_what_changes_nothing_keeps_no_key(client, operator, acme):
    put_engine(acme)
    assert client.admit("alice").engine
    client.explain("admit", "alice", auto_provision=True)
    operator.explain(str(acme.pk), "admit", "alice")
    of_acme = IdempotencyKey.objects.filter(caller=str(acme.pk))
    assert not of_acme.exists()
    assert not IdempotencyKey.objects.filter(path="/policy/explain").exists()
    assert client.admit("bob", auto_provision=True).engine
    assert of_acme.count() == 1


class Flaky(BaseHTTPRequestHandler):
    """Drops the connection, is not available, wants to be asked later, and then answers; notes what it was sent."""

    seen: list[tuple[float, str]] = []

    def do_POST(self):
        self.seen.append((time.monotonic(), self.headers["Idempotency-Key"]))
        match len(self.seen):
            case 1:
                self.close_connection = True
            case 2:
                self.answer(503, {"error": {"code": "UNAVAILABLE", "message": "Later.", "request_id": "x"}})
            case 3:
                self.answer(429, {"error": {"code": "RATE_LIMITED", "message": "Later.", "request_id": "x"}})
            case _:
                self.answer(200, {"status": "stopped"})

    def answer(self, status, body):
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(json.dumps(body))))
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        pass


def test_every_try_has_the_same_idempotency_key_and_comes_when_asked_for():
    Flaky.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as flaky, Client(f"http://127.0.0.1:{flaky.server_port}", "k") as client:
        threading.Thread(target=flaky.serve_forever, daemon=True).start()
        assert client.stop("alice").status == "stopped"
        flaky.shutdown()
    times, keys = zip(*Flaky.seen, strict=True)
    assert len(keys) == 4
    assert len(set(keys)) == 1
    assert times[3] - times[2] >= 1


def test_nobody_there_is_said_so():
    with Client("http://127.0.0.1:1", "k", retries=1) as client, pytest.raises(Unreachable):
        client.get_status()


def test_engines_of_several_pages_come_once(client, acme):
    for number in range(5):
        put_engine(acme, f"user-{number}")
    found = [engine.user_id for engine in client.engines(page_size=2)]
    assert len(found) == len(set(found)) == 5
