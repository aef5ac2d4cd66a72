"""Every endpoint about engines: what it answers to the letter, and each of its refusals."""

import re
from uuid import uuid4

import pytest

from audit.models import AuditRow
from engines import worker
from engines.models import Engine, Kind, Operation, Status
from policy import crypto
from tests.conftest import make_product
from tests.engines import crew
from tests.engines.registry import put_engine, put_operation
from tests.envelopes import assert_error

LISTED = {"engine_id", "user_id", "status", "url", "engine_version", "created_at", "last_health_at", "disk"}
SHOWN = LISTED | {"api_key"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
VERBS = [("POST", "/start"), ("POST", "/stop"), ("POST", "/rotate-key"), ("POST", "/admit"), ("GET", ""), ("DELETE", "")]


def answer(response, keys):
    assert response.status_code == 200, response.content
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Request-ID"]
    body = response.json()
    assert body.keys() == set(keys)
    return body


def test_life_of_an_engine_is_answered_to_the_letter(api, product):
    """Every 200 of every verb, on a real engine."""
    with crew.at_work():
        made = answer(
            api.call("POST", "/engines/provision", {"user_id": "alice"}), ("engine_id", "user_id", "status", "url", "api_key")
        )
        assert (made["user_id"], made["status"]) == ("alice", "running")
        assert made["api_key"].startswith("sk-sept-")
        engine = Engine.objects.get(pk=made["engine_id"])
        assert made["url"] == f"http://127.0.0.1:{engine.port}"

        shown = answer(api.call("GET", "/engines/alice"), SHOWN)
        assert {name: shown[name] for name in made} == made
        assert shown["engine_version"] == "roundhouse-demo-engine:latest"
        assert TIME.fullmatch(shown["created_at"])

        assert answer(api.call("POST", "/engines/alice/admit"), ("admitted", "engine")) == {"admitted": True, "engine": shown}

        rotated = answer(api.call("POST", "/engines/alice/rotate-key"), ("engine_id", "user_id", "api_key"))
        assert rotated["api_key"].startswith("sk-sept-")
        assert rotated["api_key"] != made["api_key"]
        assert api.call("GET", "/engines/alice").json()["api_key"] == rotated["api_key"]

        assert answer(api.call("POST", "/engines/alice/stop"), ("status",)) == {"status": "stopped"}
        started = answer(api.call("POST", "/engines/alice/start"), ("status", "url"))
        assert started == {"status": "running", "url": made["url"]}

        destroyed = answer(api.call("DELETE", "/engines/alice"), ("status", "engine_id"))
        assert destroyed == {"status": "destroyed", "engine_id": made["engine_id"]}
        assert_error(api.call("GET", "/engines/alice"), 404, "ENGINE_NOT_FOUND")
        assert api.call("GET", "/engines").json() == {"engines": [], "total": 0}


def test_rows_of_a_request_and_of_the_work_it_queued_carry_its_id(api, product):
    with crew.at_work():
        api.call("POST", "/engines/provision", {"user_id": "alice"}, **{"X-Request-ID": "ask-1"})
        api.call("DELETE", "/engines/alice", **{"X-Request-ID": "ask-2"})
    rows = AuditRow.objects.filter(user_id="alice").order_by("engine_seq")
    assert [(row.action, row.request_id) for row in rows] == [
        ("provision_requested", "ask-1"),
        ("provision", "ask-1"),
        ("destroy_requested", "ask-2"),
        ("destroy", "ask-2"),
    ]


def test_get_gives_times_with_milliseconds_and_null_before_the_first_probe(api, product):
    engine = put_engine(product)
    shown = answer(api.call("GET", "/engines/alice"), SHOWN)
    assert shown["last_health_at"] is None
    assert shown["api_key"] == crypto.decrypt(engine.key_ciphertext)
    Engine.objects.filter(pk=engine.pk).update(last_health_at="2026-11-24T12:00:00.5Z")
    assert api.call("GET", "/engines/alice").json()["last_health_at"] == "2026-11-24T12:00:00.500Z"


def test_list_shows_living_engines_without_keys(api, product):
    put_engine(product, "bob", Status.STOPPED)
    put_engine(product, "carol", Status.FAILED)
    put_engine(product, "gone", Status.DESTROYED, destroyed_at="2026-01-01T00:00:00Z", key_hash="", key_ciphertext="")
    body = answer(api.call("GET", "/engines"), ("engines", "total"))
    assert body["total"] == 2
    assert [engine["user_id"] for engine in body["engines"]] == ["carol", "bob"]
    assert all(engine.keys() == LISTED for engine in body["engines"])


def test_list_filters_and_pages(api, product):
    users = [
        put_engine(product, f"user-{number}", Status.RUNNING if number % 2 else Status.STOPPED).user_id for number in range(6)
    ]
    newest = list(reversed(users))

    def page(query):
        body = answer(api.call("GET", f"/engines?{query}"), ("engines", "total"))
        return [engine["user_id"] for engine in body["engines"]], body["total"]

    assert page("limit=4") == (newest[:4], 6)
    assert page("limit=4&offset=4") == (newest[4:], 6)
    assert page("offset=100") == ([], 6)
    assert page("status=running") == (newest[::2], 3)
    assert page("status=running&limit=1&offset=1") == ([newest[2]], 3)
    assert page("status=failed") == ([], 0)


@pytest.mark.parametrize(
    "query",
    ["status=destroyed", "status=RUNNING", "status=", "limit=0", "limit=-1", "limit=1001", "limit=x", "limit=1e2", "limit=",
     "offset=-1", "offset=x", "offset=99999999999999999999", "limit=%00", "status=%00", "limit=0000000001" + "9" * 5000],
)  # fmt: skip
def test_list_refuses_wrong_parameters(api, query):
    error = assert_error(api.call("GET", f"/engines?{query}"), 400, "INVALID_REQUEST")
    assert error["details"]["fields"].keys() == {query.partition("=")[0]}


@pytest.mark.parametrize(("method", "suffix"), [verb for verb in VERBS if verb[1] != "/admit"])
def test_verb_refuses_a_user_without_engine(api, method, suffix):
    assert_error(api.call(method, f"/engines/nobody{suffix}"), 404, "ENGINE_NOT_FOUND")


@pytest.mark.parametrize(
    ("status", "verb", "code"),
    [
        (Status.RUNNING, "start", "ENGINE_ALREADY_RUNNING"),
        (Status.STOPPED, "stop", "ENGINE_NOT_RUNNING"),
        (Status.STOPPED, "rotate-key", "ENGINE_NOT_RUNNING"),
        (Status.SLEEPING, "rotate-key", "ENGINE_NOT_RUNNING"),
        (Status.FAILED, "rotate-key", "ENGINE_NOT_RUNNING"),
    ],
)
def test_verb_refuses_a_state_that_it_does_not_fit(api, product, status, verb, code):
    engine = put_engine(product, status=status)
    assert_error(api.call("POST", f"/engines/alice/{verb}"), 409, code)
    assert not Operation.objects.filter(engine=engine).exists()


def test_verb_refuses_while_another_operation_is_open(api, product):
    operation = put_operation(put_engine(product), Kind.RESTART)
    for verb in ("stop", "rotate-key"):
        error = assert_error(api.call("POST", f"/engines/alice/{verb}"), 409, "OPERATION_IN_PROGRESS")
        assert error["details"] == {"operation_id": str(operation.pk)}


def test_provision_refuses_a_second_engine_of_a_user(api, product):
    put_engine(product, status=Status.STOPPED)
    assert_error(api.call("POST", "/engines/provision", {"user_id": "alice"}), 409, "ENGINE_ALREADY_EXISTS")


def test_provision_refuses_when_no_port_is_free(api, product, settings):
    settings.ENV = settings.ENV.model_copy(update={"port_min": 20001, "port_max": 20001})
    put_engine(product, "bob", port=20001)
    assert_error(api.call("POST", "/engines/provision", {"user_id": "alice"}), 503, "PORT_EXHAUSTION")
    assert not Engine.objects.filter(user_id="alice").exists()


@pytest.fixture
def any_image(product):
    """The product may run any image."""
    product.policy = {"images": ["*"]}
    product.save()


def test_provision_refuses_an_image_that_the_policy_does_not_name(api, product):
    error = assert_error(
        api.call("POST", "/engines/provision", {"user_id": "alice", "engine_version": "x:1"}), 403, "POLICY_DENIED"
    )
    assert error["details"]["rule"] == "images"
    assert not Engine.objects.exists()


def test_provision_takes_the_image_it_is_given(api, any_image):
    api.call("POST", "/engines/provision", {"user_id": "alice", "engine_version": "acme/engine:3"}, Prefer="respond-async")
    assert api.call("GET", "/engines/alice").json()["engine_version"] == "acme/engine:3"


def test_provision_of_an_image_that_is_not_there_is_a_backend_error(api, any_image, memory_backend):
    memory_backend.missing_images |= {"nobody/has-it:1"}
    with crew.at_work():
        response = api.call("POST", "/engines/provision", {"user_id": "alice", "engine_version": "nobody/has-it:1"})
    error = assert_error(response, 502, "BACKEND_ERROR")
    assert error["details"]["cause"] == "image_missing"
    assert api.call("GET", "/engines/alice").json()["status"] == "failed"


def test_user_named_provision_is_a_user_like_any_other(api, product):
    put_engine(product, "provision", Status.STOPPED)
    assert api.call("GET", "/engines/provision").json()["user_id"] == "provision"
    assert api.call("POST", "/engines/provision/admit").json()["reason"] == "engine_stopped"
    with crew.at_work():
        assert api.call("DELETE", "/engines/provision").json()["status"] == "destroyed"
    assert_error(api.call("PUT", "/engines/provision"), 405, "METHOD_NOT_ALLOWED")


def test_operation_shows_kind_state_steps_and_error(api, product):
    operation = put_operation(put_engine(product), Kind.STOP)
    path = f"/operations/{operation.pk}"
    keys = (
        "operation_id",
        "engine_id",
        "user_id",
        "kind",
        "state",
        "attempt",
        "queue",
        "queue_position",
        "created_at",
        "finished_at",
        "steps",
        "error",
        "notice",
    )
    body = answer(api.call("GET", path), keys)
    assert (body["kind"], body["state"], body["user_id"], body["steps"], body["error"]) == ("stop", "pending", "alice", [], None)
    assert body["notice"] is None
    assert TIME.fullmatch(body["created_at"])
    assert body["finished_at"] is None
    assert api.call("DELETE", "/engines/alice", Prefer="respond-async").status_code == 202
    assert answer(api.call("GET", path), keys)["state"] == "superseded"
    done = Operation.objects.get(kind=Kind.DESTROY)
    worker.run(done.pk)
    body = answer(api.call("GET", f"/operations/{done.pk}"), keys)
    assert (body["state"], body["attempt"]) == ("succeeded", 1)
    assert [step["step"] for step in body["steps"]] == ["claimed", "stopping", "removing", "succeeded"]
    assert all(step.keys() == {"step", "at", "attempt"} and TIME.fullmatch(step["at"]) for step in body["steps"])
    assert TIME.fullmatch(body["finished_at"])


def test_operation_says_that_there_is_older_data_of_its_user(api, product):
    operation = put_operation(put_engine(product), Kind.PROVISION, params={"unregistered": [str(uuid4())]})
    assert "data of an earlier engine of this user" in api.call("GET", f"/operations/{operation.pk}").json()["notice"]


def test_operation_that_failed_says_why(api, product):
    error = {"error_code": "boot_timeout", "error_message": "The engine was not healthy within 20 s."}
    operation = put_operation(put_engine(product), Kind.START, "failed", finished_at="2026-11-24T12:00:00Z", **error)
    body = api.call("GET", f"/operations/{operation.pk}").json()
    assert body["error"] == {"code": "boot_timeout", "message": "The engine was not healthy within 20 s."}


# -- another product's ---------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(product):
    """Another product's engine and operation, beside which `product` has none."""
    engine = put_engine(make_product("other"), "alice")
    return engine, put_operation(engine)


@pytest.mark.parametrize(("method", "suffix"), [verb for verb in VERBS if verb[1] != "/admit"])
@pytest.mark.parametrize("by", ["user_id", "engine_id"])
def test_verb_does_not_see_another_products_engine(api, foreign, method, suffix, by):
    engine, operation = foreign
    name = engine.user_id if by == "user_id" else str(engine.pk)
    assert_error(api.call(method, f"/engines/{name}{suffix}"), 404, "ENGINE_NOT_FOUND")
    engine.refresh_from_db()
    operation.refresh_from_db()
    assert (engine.status, operation.state) == ("running", "pending")


def test_admit_does_not_see_another_products_engine(api, foreign):
    assert api.call("POST", "/engines/alice/admit").json() == {"admitted": False, "engine": None, "reason": "engine_not_found"}


def test_provision_is_free_to_use_another_products_user_id(api, product, foreign):
    api.call("POST", "/engines/provision", {"user_id": "alice"}, Prefer="respond-async")
    assert Engine.objects.filter(user_id="alice").count() == 2


def test_reads_do_not_show_what_is_another_products(api, foreign):
    engine, operation = foreign
    assert_error(api.call("GET", f"/operations/{operation.pk}"), 404, "NOT_FOUND")
    assert_error(api.call("GET", f"/operations/{engine.pk}"), 404, "NOT_FOUND")
    assert api.call("GET", "/engines").json() == {"engines": [], "total": 0}
    assert api.call("GET", "/status").json()["total"] == 0
    for query in ("", "?user_id=alice", f"?engine_id={engine.pk}", "?actor=other"):
        rows = api.call("GET", f"/audit{query}").json()["results"]
        assert all(row["product_slug"] == "acme" for row in rows)
        assert not any(row["user_id"] for row in rows)
    assert api.call("GET", "/engines/alice/audit").json()["results"] == []
