"""The admin as a whole: its first page, who manages the staff, and what a browser may do with our answers."""

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from engines import hosts
from engines.models import Kind, OperationState, Status
from tests.engines.registry import put_engine, put_operation
from tests.staff import hire, log_in


def policy(response):
    pairs = (part.strip().split(" ", 1) for part in response["Content-Security-Policy"].split(";"))
    return {name: set(values.split()) for name, values in pairs}


@pytest.mark.parametrize("path", ["/admin/login/", "/admin/", "/admin/engines/engine/", "/admin/no-such-page/"])
def test_admin_pages_may_run_what_unfold_needs_and_load_only_from_us(db, path):
    allowed = policy(log_in("rita").get(path))
    assert allowed["script-src"] == {"'self'", "'unsafe-inline'", "'unsafe-eval'"}
    assert allowed["default-src"] == allowed["frame-ancestors"] == allowed["base-uri"] == {"'none'"}
    assert set().union(*allowed.values()) <= {"'none'", "'self'", "'unsafe-inline'", "'unsafe-eval'", "data:"}


@pytest.mark.parametrize("path", ["/health", "/engines", "/no-such-path", "/administrator", "/status"])
def test_everything_else_may_do_nothing(db, path):
    allowed = policy(Client().get(path))
    assert allowed["default-src"] == {"'none'"}
    assert not allowed.keys() & {"script-src", "style-src"}


def test_overview_tells_states_and_operations_in_few_queries(product):
    for n in range(3):
        put_engine(product, f"user-{n}")
    broken = put_engine(product, "broken", Status.FAILED)
    put_engine(product, "gone", Status.DESTROYED, destroyed_at=timezone.now())
    put_operation(broken, Kind.START, OperationState.FAILED, finished_at=timezone.now(), error_code="boot_timeout")
    put_operation(broken, Kind.RESTART)
    client = log_in("rita")
    with CaptureQueriesContext(connection) as queries:
        response = client.get("/admin/")
    counts = {state["status"]: state["count"] for state in response.context["states"]}
    assert counts == {"provisioning": 0, "running": 3, "sleeping": 0, "stopped": 0, "failed": 1, "destroying": 0}
    assert "boot_timeout" in response.text
    assert [row["it"].kind for row in response.context["open_operations"]] == ["restart"]
    assert sum("engines_" in entry["sql"] for entry in queries) == 4


def test_overview_says_which_host_does_not_answer(product):
    put_engine(product, "alice")
    assert "the state of its engines is unknown" not in log_in("rita").get("/admin/").text
    hosts.mark_unreachable()
    assert "The runtime of host local has not answered since" in log_in("mona").get("/admin/").text
    health = Client().get("/health")
    assert (health.status_code, health.json()["hosts"]) == (200, "engines unknown on 1 hosts")


def test_overview_hides_what_the_user_may_not_look_at(product):
    client = Client()
    client.force_login(User.objects.create_user("nobody", is_staff=True))
    response = client.get("/admin/")
    assert response.status_code == 200
    assert "states" not in response.context
    for path in ("engines/engine", "engines/operation", "policy/product", "audit/auditrow", "auth/user"):
        assert f'href="/admin/{path}/' not in response.text
        assert client.get(f"/admin/{path}/").status_code == 403


def test_denied_staff_leaves_one_log_line(db, caplog):
    client = Client()
    client.force_login(User.objects.create_user("nobody", is_staff=True))
    client.post("/admin/engines/engine/", REMOTE_ADDR="192.0.2.7")
    Client(enforce_csrf_checks=True).post("/admin/login/", {"username": "root"}, REMOTE_ADDR="192.0.2.8")
    denied, forged = [record.msg for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    named = {"address": "192.0.2.7", "method": "POST", "path": "/admin/engines/engine/", "user": "nobody", "reason": "permission"}
    assert denied.items() >= {"event": "staff_denied", **named}.items()
    forger = {"address": "192.0.2.8", "path": "/admin/login/", "user": "", "reason": "CSRF cookie not set."}
    assert forged.items() >= {"event": "staff_denied", **forger}.items()


def test_admin_is_for_staff_only(db):
    client = Client()
    assert client.get("/admin/")["Location"].startswith("/admin/login/")
    client.force_login(User.objects.create_user("outsider"))
    assert client.get("/admin/")["Location"].startswith("/admin/login/")


def test_log_in_without_a_page_to_go_back_to_leads_to_the_overview(db):
    hire("rita", password="a long password of rita")
    answer = Client().post("/admin/login/", {"username": "rita", "password": "a long password of rita"})
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")


def test_superuser_gives_staff_their_permissions(db):
    client = log_in("root", superuser=True)
    for path in ("user/", "user/add/", "group/", "group/add/"):
        assert client.get(f"/admin/auth/{path}").status_code == 200, path
    password = "correct horse battery staple"
    client.post(
        "/admin/auth/user/add/", {"username": "nina", "password1": password, "password2": password, "usable_password": "true"}
    )
    nina = User.objects.get(username="nina")
    page = client.get(f"/admin/auth/user/{nina.pk}/change/").text
    for name in ("Can destroy engines", "Can look at engine keys", "Can register products"):
        assert name in page, name
    assert client.get(f"/admin/auth/user/{nina.pk}/password/").status_code == 200
