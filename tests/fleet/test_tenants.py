"""What a product learns of others: nothing of staff's names and reasons, of the runtime's words, of the room of the host."""

import itertools
from uuid import uuid4

import pytest
from django.conf import settings as project
from django.test import Client

from audit import actors
from audit.models import AuditRow
from engines import causes, lifecycle
from engines.backends import base
from engines.models import Engine, Kind, Operation
from engines.worker.attempt import EXHAUSTED
from policy import products
from tests.conftest import make_product
from tests.engines.registry import put_engine, put_operation
from tests.envelopes import assert_error
from tests.staff import log_in

STAFF = ("engines.operate_engine", "policy.operate_product", "policy.suspend_product")
SECRETS = ("rita", "deploys", "CANARY", "TICKET")


@pytest.fixture
def operator(db):
    """The REST API with a named admin key, whose requests have ids that name a ticket."""
    issued = Client(headers={"X-Admin-Key": project.ENV.admin_key}).post("/admin-keys", {"name": "deploys"}, "application/json")
    return Client(headers={"X-Admin-Key": issued.json()["admin_api_key"], "X-Request-ID": "TICKET-7"})


@pytest.fixture
def told(api, product, operator, memory_backend, carry_out):
    """All that the product is told, after its operator, staff and runtime have said secrets."""
    said = []

    def hear(answer):
        said.append(answer)
        return answer

    carry_out(lifecycle.provision(product, "alice", by=actors.product("acme")))
    memory_backend.fail_next("stop", base.BackendError("CANARY of the daemon"))
    hear(api.call("POST", "/engines/alice/stop", Prefer="respond-async", **{"Idempotency-Key": "once"}))
    failed = carry_out(Operation.objects.latest("created_at"))
    assert "CANARY" in failed.error_message
    hear(api.call("POST", "/engines/alice/stop", **{"Idempotency-Key": "once"}))
    rita = log_in("rita", *STAFF)
    rita.post(f"/admin/engines/engine/{Engine.objects.get().pk}/start/", {"reason": "CANARY of staff"})
    carry_out(Operation.objects.latest("created_at"))
    path = f"/products/{product.pk}"
    for verb, body in (
        ("overrides", {"rule": "pids", "value": 64, "reason": "CANARY of an override", "expires_in_s": 60}),
        ("platform-keys", {}),
        ("suspend", {"reason": "CANARY of a suspension", "stop_engines": True}),
    ):
        assert operator.post(f"{path}/{verb}", body, "application/json").status_code == 200
    carry_out(Operation.objects.latest("created_at"))
    hear(api.call("POST", "/engines/alice/admit"))
    hear(api.call("POST", "/engines/alice/start"))
    hear(api.call("POST", "/policy/explain", {"verb": "start", "user_id": "alice"}))
    assert operator.post(f"{path}/resume", {"reason": "CANARY of the end"}, "application/json").status_code == 200
    for address in ("/audit", "/engines/alice/audit", "/engines", "/engines/alice", "/status", "/metrics"):
        hear(api.call("GET", address))
    for actor in ("admin", "admin:rita"):
        hear(api.get("/audit", {"actor": actor}))
    for operation in Operation.objects.all():
        hear(api.call("GET", f"/operations/{operation.pk}"))
    return said


def test_answers_to_a_product_hide_what_operators_and_the_runtime_said(told):
    log = str(list(AuditRow.objects.values_list("actor", "metadata", "request_id")))
    assert all(secret in log for secret in SECRETS)  # operators see all of it
    assert {answer.status_code for answer in told} == {200, 202, 403, 502}
    for answer, secret in itertools.product(told, SECRETS):
        asked = answer.request["QUERY_STRING"]
        assert secret not in answer.text or secret in asked, (answer.request["PATH_INFO"], answer.text)


def test_operation_that_failed_has_a_sentence_for_each_cause(api, product):
    operation = put_operation(put_engine(product), Kind.START, "failed", finished_at="2026-11-24T12:00:00Z", error_code="x")
    codes = {error.code for error in _subclasses(base.BackendError)} | {
        base.BackendError.code, EXHAUSTED, "boot_timeout", "engine_exited", "port_exhaustion", "engine_env_unreadable",
        "runtime_not_allowed",
    }  # fmt: skip
    assert set(causes.SENTENCES) == codes
    for code in (*codes, "a_later_code"):
        Operation.objects.update(error_code=code, error_message="CANARY of the daemon at /var/run/docker.sock")
        error = api.call("GET", f"/operations/{operation.pk}").json()["error"]
        assert error == {"code": code, "message": causes.sentence(code)}
        assert "{" not in error["message"]


def _subclasses(kind):
    return {found for each in kind.__subclasses__() for found in (each, *_subclasses(each))}


@pytest.mark.parametrize("ceiling", [{"host_max_engines": 2}, {"host_memory_mb": 1030}, {"host_disk_mb": 2050}])
def test_ceilings_of_the_host_are_yes_or_no_for_a_product(api, product, other_product, settings, ceiling):
    settings.ENV = settings.ENV.model_copy(update=ceiling)
    [(rule, limit)] = ceiling.items()
    put_engine(other_product, memory_mb=512, disk_mb=1024)
    unknown = {"rule": rule, "limit": None, "value": None, "headroom": None}
    assert ask(api)["decisions"][-1] == {**unknown, "allowed": True}
    put_engine(other_product, "bob", memory_mb=512, disk_mb=1024)
    assert ask(api)["decisions"][-1] == {**unknown, "allowed": False}
    seen = ask(Client(headers={"X-Admin-Key": project.ENV.admin_key}), product_id=str(product.pk))["decisions"][-1]
    assert (seen["rule"], seen["limit"], seen["value"] > limit, seen["headroom"] is None) == (rule, limit, True, False)
    error = assert_error(api.call("POST", "/engines/provision", {"user_id": "alice"}), 503, "CAPACITY_EXHAUSTED")
    assert error["details"] == {"rule": rule}
    assert str(limit) not in error["message"]
    [row] = api.get("/audit", {"action": "capacity_exhausted"}).json()["results"]
    assert row["metadata"] == {"verb": "provision", "rule": rule}
    assert AuditRow.objects.get(action="capacity_exhausted").metadata["limit"] == limit


def ask(client, **more):
    body = {"verb": "provision", "user_id": "alice", **more}
    return client.post("/policy/explain", body, "application/json").json()


def test_ports_of_the_host_are_not_told(api, product, settings):
    settings.ENV = settings.ENV.model_copy(update={"port_min": 9001, "port_max": 9001})
    put_engine(product, port=9001)
    error = assert_error(api.call("POST", "/engines/provision", {"user_id": "bob"}), 503, "PORT_EXHAUSTION")
    assert error["message"] == "No port is free for one more engine. Try again later, or destroy an engine."


def test_queue_position_counts_no_operation_of_others(api, product):
    other = make_product("other")
    for number in range(3):
        put_operation(put_engine(other, f"user-{number}"))
    first, second = (put_operation(put_engine(product, f"user-{number}")) for number in range(2))
    shown = [api.call("GET", f"/operations/{each.pk}").json()["queue_position"] for each in (first, second)]
    assert shown == [1, 2]


def test_staff_see_what_products_do_not(product):
    products.suspend(product.pk, "unpaid", by=actors.staff("rita"))
    row = AuditRow.objects.get(action="product_suspend")
    client = log_in("sam")
    text = client.get(f"/admin/audit/auditrow/{row.pk}/change/").text
    assert "admin:rita" in text
    assert "unpaid" in text
    operation = put_operation(put_engine(product, str(uuid4())), error_code="backend_error", error_message="words of the daemon")
    assert "words of the daemon" in client.get(f"/admin/engines/operation/{operation.pk}/change/").text
