"""Engines and operations in the admin: what a page shows, what staff may do, and what is refused."""

import re
from datetime import timedelta

import pytest
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit import actors, trail
from audit.actions import Action
from audit.models import AuditRow
from engines import lifecycle
from engines.admin import timeline, verbs
from engines.models import Engine, Kind, Operation, OperationState, Status
from policy import crypto, products
from tests.engines.registry import put_engine, put_operation
from tests.refused_writes import refusing
from tests.staff import hire, log_in

LIST = "/admin/engines/engine/"
OPERATIONS = "/admin/engines/operation/"
OPERATE, DESTROY = "engines.operate_engine", "engines.destroy_engine"
ROTATE, REVEAL = "engines.rotate_engine_key", "engines.reveal_engine_key"
ALL = (OPERATE, DESTROY, ROTATE, REVEAL)


def page(engine):
    return f"{LIST}{engine.pk}/change/"


def buttons(response):
    return set(re.findall(r'(?:action|href)="[^"]*/([a-z_]+)/"[^>]*>(?:<input[^>]*>)?<?(?:button|span)', response.text))


def told(response):
    return [str(message) for message in get_messages(response.wsgi_request)]


def rows(engine):
    return list(AuditRow.objects.filter(engine_id=engine.pk).order_by("engine_seq", "id"))


# -- the page ----------------------------------------------------------------------------------------------------------


def test_page_shows_a_whole_lifetime_in_order(product, running_engine, carry_out):
    engine = running_engine
    for verb in (lifecycle.stop, lifecycle.start, lifecycle.sleep, lifecycle.wake, lifecycle.rotate_key, lifecycle.destroy):
        carry_out(verb(engine, by=actors.staff("rita"), reason="a test"))
    text = log_in("rita").get(page(engine)).text
    told = re.findall(r'href="/admin/audit/auditrow/(\d+)/change/"', text)
    assert [int(key) for key in told] == [row.pk for row in rows(engine)]
    for words in ("destroying → destroyed", "stopped → running", "admin:rita", "a test", "after", product.slug):
        assert words in text, words
    for operation in Operation.objects.filter(engine=engine):
        assert f"{OPERATIONS}{operation.pk}/change/" in text
    assert not [secret for secret in ("sk-sept", "gAAAA", engine.key_hash) if secret in text]


def test_page_never_shows_a_key(product):
    engine = put_engine(product, pending_key_hash="ab" * 32, pending_key_ciphertext=crypto.encrypt("sk-sept-pending"))
    client = log_in("rita", *ALL)
    for address in (LIST, page(engine), f"{LIST}{engine.pk}/destroy/", "/admin/"):
        text = client.get(address).text
        for secret in (
            engine.key_hash,
            engine.key_ciphertext,
            engine.pending_key_hash,
            engine.pending_key_ciphertext,
            "sk-sept-",
        ):
            assert secret not in text, address


def test_page_shows_the_open_operation_with_its_steps(product):
    engine = put_engine(product)
    at = timezone.now()
    steps = [{"step": "waiting_for_health", "at": at.isoformat(), "attempt": 3}]
    operation = put_operation(engine, Kind.RESTART, OperationState.RUNNING, steps=steps)
    text = log_in("rita").get(page(engine)).text
    assert 'id="open-operation"' in text
    assert "waiting for health" in text
    assert "attempt 3" in text
    assert str(operation.pk) in text


def test_page_of_a_big_lifetime_shows_the_newest_rows_and_leads_to_the_others(product, superuser):
    engine = put_engine(product, seq=2500)
    superuser.execute(
        "INSERT INTO audit_log (timestamp, engine_id, action, engine_seq) SELECT now(), %s, 'stop', n"
        " FROM generate_series(1, 2500) n",
        [engine.pk],
    )
    client, seen, address = log_in("rita"), [], page(engine)
    while address:
        text = client.get(address).text
        seen = [int(seq) for seq in re.findall(r'<td class="rh-muted">(\d+)</td>', text)] + seen
        earlier = re.search(r'href="(\?before=[^"]+)"', text)
        address = earlier and page(engine) + earlier[1]
    assert seen == list(range(1, 2501))
    assert client.get(page(engine) + "?before=x").status_code == 400


def test_page_hides_what_the_user_may_not_look_at(product):
    engine = put_engine(product)
    put_operation(engine)
    trail.record(Action.STOP, lifecycle.subject(engine), by=actors.SYSTEM)
    client, user = Client(), hire("rita")
    user.user_permissions.clear()
    client.force_login(user)
    assert client.get(page(engine)).status_code == 403
    assert client.get(LIST).status_code == 403
    assert client.get(OPERATIONS).status_code == 403
    user.user_permissions.add(*hire("other").user_permissions.filter(codename="view_engine"))
    text = client.get(page(engine)).text
    assert engine.user_id in text
    assert 'id="timeline"' not in text
    assert "Operations</h2>" not in text


def test_pages_show_what_a_volume_takes(product):
    engine = put_engine(
        product, disk_used_mb=1600, disk_mb=1024, disk_exceeded_at=timezone.now(), disk_measured_at=timezone.now()
    )
    client = log_in("rita", *ALL)
    text = client.get(page(engine)).text
    assert "1600 of 1024 MB" in text
    assert "exceeded" in text
    assert "1600 of 1024 ⚠ exceeded" in client.get(LIST).text
    Engine.objects.update(disk_used_mb=None)
    assert "not measured yet; 1024 MB allowed" in client.get(page(engine)).text


def test_page_of_an_engine_that_is_none_is_not_found(product):
    client = log_in("rita", *ALL)
    for key in (product.pk, "x", "1"):
        assert client.get(f"{LIST}{key}/change/").status_code == 404
    assert client.post(f"{LIST}{product.pk}/stop/").status_code == 404
    assert client.post(f"{LIST}x/stop/").status_code in (404, 405, 302)


def test_page_escapes_what_a_product_chose(product):
    engine = put_engine(product, user_id="<script>alert(1)</script>")
    client = log_in("rita", *ALL)
    for address in (page(engine), LIST, f"{LIST}{engine.pk}/destroy/"):
        assert "<script>alert(1)" not in client.get(address).text
    assert "<script>alert(1)" not in client.post(f"{LIST}{engine.pk}/stop/", follow=True).text


def test_pages_mark_what_does_not_show(product, carry_out):
    engine = put_engine(product, user_id="ali\u200dce\u202e")
    operation = carry_out(lifecycle.stop(engine, by=actors.SYSTEM, reason="qui\u200bet"))
    trail.record(Action.STOP, lifecycle.subject(engine), by=actors.SYSTEM)
    client = log_in("rita", *ALL)
    told = client.post(f"{LIST}{engine.pk}/start/", follow=True)
    pages = [
        client.get(address)
        for address in (
            page(engine), LIST, OPERATIONS, f"{OPERATIONS}{operation.pk}/change/", f"{LIST}{engine.pk}/destroy/", "/admin/",
            "/admin/audit/auditrow/", f"/admin/audit/auditrow/{AuditRow.objects.latest('pk').pk}/change/",
        )
    ]  # fmt: skip
    for shown in (told, *pages):
        assert "ali⟨U+200D⟩ce⟨U+202E⟩" in shown.text, shown.request["PATH_INFO"]
        assert "\u200d" not in shown.text
        assert "\u202e" not in shown.text
    assert "qui⟨U+200B⟩et" in pages[0].text


# -- the timeline ------------------------------------------------------------------------------------------------------


def test_read_tells_the_time_between_rows_and_in_each_state(product, superuser):
    engine = put_engine(product, status=Status.STOPPED)
    start = timezone.now() - timedelta(hours=2)
    moves = [
        (0, None, None, "provisioning", 1), (60, 20_000, "provisioning", "running", 2), (90, None, None, None, 2),
        (3680, 1_000, "running", "stopped", 3),
    ]  # fmt: skip
    for seconds, took, before, after, seq in moves:
        superuser.execute(
            "INSERT INTO audit_log (timestamp, engine_id, action, duration_ms, from_status, to_status, engine_seq)"
            " VALUES (%s, %s, 'stop', %s, %s, %s, %s)",
            [start + timedelta(seconds=seconds), engine.pk, took, before, after, seq],
        )
    read = timeline.read(engine)
    assert [(entry.gap, entry.held) for entry in read.entries] == [
        ("", ""), ("+1 min 20 s", "1 min 20 s"), ("+10.0 s", ""), ("+59 min 51 s", "1 h"),
    ]  # fmt: skip
    assert read.since == start + timedelta(seconds=3681)


# -- verbs -------------------------------------------------------------------------------------------------------------

NEEDS = {
    "start": (OPERATE, Status.STOPPED), "stop": (OPERATE, Status.RUNNING), "sleep": (OPERATE, Status.RUNNING),
    "wake": (OPERATE, Status.SLEEPING), "restart": (OPERATE, Status.RUNNING), "rotate_key": (ROTATE, Status.RUNNING),
    "destroy": (DESTROY, Status.RUNNING),
}  # fmt: skip


def test_needs_names_every_verb():
    assert NEEDS.keys() == verbs.VERBS.keys()


@pytest.mark.parametrize("verb", NEEDS)
def test_verb_opens_an_operation_in_the_users_name_and_returns_at_once(product, verb):
    permission, status = NEEDS[verb]
    engine = put_engine(product, status=status)
    response = log_in("rita", permission).post(f"{LIST}{engine.pk}/{verb}/", {"reason": "because"})
    operation = Operation.objects.get(engine=engine)
    assert (operation.kind, operation.state, operation.actor) == (verb, "pending", "admin:rita")
    assert operation.params["reason"] == "because"
    assert operation.request_id == response["X-Request-ID"]
    assert (response.status_code, response["Location"]) == (302, page(engine))
    assert f"{OPERATIONS}{operation.pk}/change/" in told(response)[0]


@pytest.mark.parametrize("verb", NEEDS)
def test_verb_without_its_permission_has_no_button_and_is_forbidden(product, verb):
    permission, status = NEEDS[verb]
    engine = put_engine(product, status=status)
    client = log_in("rita", *(set(ALL) - {permission}))
    assert f"/{verb}/" not in client.get(page(engine)).text
    assert client.post(f"{LIST}{engine.pk}/{verb}/").status_code == 403
    assert client.get(f"{LIST}{engine.pk}/{verb}/").status_code == 403
    assert client.post(LIST, {"action": verb, "_selected_action": [engine.pk], "confirmed": "yes"}).status_code == 403
    assert not Operation.objects.exists()


@pytest.mark.parametrize("status", Status.values)
def test_page_offers_only_what_can_be_done(product, status):
    gone = {"destroyed_at": timezone.now()} if status == Status.DESTROYED else {}
    engine = put_engine(product, status=status, **gone)
    text = log_in("rita", *ALL).get(page(engine)).text
    offered = {verb for verb in NEEDS if f"{engine.pk}/{verb}/" in text}
    assert offered == {kind.value for kind in (Kind(verb) for verb in NEEDS) if lifecycle.can(engine, kind)}
    assert ("reveal_key/" in text) == (status != Status.DESTROYED)


def test_verb_on_get_asks_first_or_is_not_allowed(product):
    engine = put_engine(product)
    client = log_in("rita", *ALL)
    for verb in NEEDS:
        response = client.get(f"{LIST}{engine.pk}/{verb}/")
        assert response.status_code == (200 if verb in ("destroy", "rotate_key") else 405), verb
    assert client.get(f"{LIST}{engine.pk}/reveal_key/").status_code == 405
    assert not Operation.objects.exists()


def test_verb_needs_a_csrf_token(product):
    engine = put_engine(product)
    client = log_in("rita", *ALL, enforce_csrf_checks=True)
    for verb in (*NEEDS, "reveal_key"):
        assert client.post(f"{LIST}{engine.pk}/{verb}/").status_code == 403, verb
    assert not Operation.objects.exists()


def test_verb_that_is_refused_says_why(product):
    engine = put_engine(product, status=Status.STOPPED)
    client = log_in("rita", *ALL)
    assert told(client.post(f"{LIST}{engine.pk}/wake/")) == ["alice: The engine is stopped; wake needs sleeping."]
    put_operation(engine, Kind.START)
    text = client.post(f"{LIST}{engine.pk}/stop/", follow=True).text
    assert "alice: " in text
    assert Operation.objects.count() == 1


def test_verb_that_the_policy_refuses_says_why(product):
    engine = put_engine(product, status=Status.STOPPED)
    products.suspend(product.pk, "unpaid", by=actors.ADMIN)
    assert told(log_in("rita", *ALL).post(f"{LIST}{engine.pk}/start/")) == ["alice: The product is suspended: unpaid"]
    assert not Operation.objects.exists()


def test_verb_refuses_a_reason_that_is_too_long(product):
    engine = put_engine(product)
    response = log_in("rita", *ALL).post(f"{LIST}{engine.pk}/destroy/", {"reason": "x" * 201})
    assert response.status_code == 200
    assert "at most 200 characters" in response.text
    assert not Operation.objects.exists()


# -- the same on selected engines --------------------------------------------------------------------------------------


def test_action_goes_on_past_an_engine_that_refuses(product):
    running = [put_engine(product, f"user-{n}") for n in range(2)]
    asleep = put_engine(product, "sleeper", Status.SLEEPING)
    keys = [str(engine.pk) for engine in (running[0], asleep, running[1])]
    response = log_in("rita", OPERATE).post(LIST, {"action": "restart", "_selected_action": keys})
    assert {operation.engine_id for operation in Operation.objects.all()} == {engine.pk for engine in running}
    said = " ".join(told(response))
    assert "sleeper: The engine is sleeping" in said
    assert "user-0" in said
    assert "user-1" in said


def test_action_with_a_warning_asks_first(product):
    engine = put_engine(product)
    client = log_in("rita", DESTROY)
    body = {"action": "destroy", "_selected_action": [engine.pk]}
    asked = client.post(LIST, body)
    assert asked.status_code == 200
    assert "alice of acme" in asked.text
    assert not Operation.objects.exists()
    client.post(LIST, {**body, "confirmed": "yes", "reason": "gone"})
    assert Operation.objects.get().params["reason"] == "gone"


def test_action_never_reaches_engines_that_are_not_ticked(product):
    ticked, other = put_engine(product, "ticked"), put_engine(product, "other")
    client = log_in("rita", OPERATE)
    client.post(LIST, {"action": "stop", "_selected_action": [ticked.pk], "select_across": "1"})
    assert [operation.engine_id for operation in Operation.objects.all()] == [ticked.pk]
    assert client.post(LIST, {"action": "stop", "_selected_action": ["x"]}).status_code == 400
    assert other.pk


def test_nothing_is_added_changed_or_deleted_by_django_even_for_a_superuser(product):
    engine = put_engine(product)
    operation = put_operation(engine)
    client = log_in("root", superuser=True)
    for base, key in ((LIST, engine.pk), (OPERATIONS, operation.pk)):
        assert client.post(f"{base}add/").status_code == 403
        assert client.post(f"{base}{key}/change/", {"status": "stopped"}).status_code == 405
        assert client.post(f"{base}{key}/delete/", {"post": "yes"}).status_code == 403
        client.post(base, {"action": "delete_selected", "_selected_action": [key], "post": "yes"})
        assert client.get(f"{base}{key}/history/").status_code == 404
    assert Engine.objects.get().status == "running"
    assert Operation.objects.count() == 1


# -- reveal ------------------------------------------------------------------------------------------------------------


def test_reveal_shows_the_key_in_this_response_only(product):
    engine = put_engine(product)
    client = log_in("rita", REVEAL)
    response = client.post(f"{LIST}{engine.pk}/reveal_key/")
    assert crypto.decrypt(engine.key_ciphertext) in response.text
    assert "no-store" in response["Cache-Control"]
    assert "sk-sept-" not in f"{response.cookies} {dict(client.session)}"
    (row,) = rows(engine)
    assert (row.action, row.actor, row.engine_seq, row.request_id) == ("key_reveal", "admin:rita", 1, response["X-Request-ID"])
    assert row.from_status is row.to_status is None
    assert "sk-sept-" not in client.get(page(engine)).text


def test_reveal_without_the_permission_is_forbidden(product):
    engine = put_engine(product)
    client = log_in("rita", OPERATE, DESTROY, ROTATE)
    assert "reveal_key" not in client.get(page(engine)).text
    assert client.post(f"{LIST}{engine.pk}/reveal_key/").status_code == 403
    assert not rows(engine)


def test_reveal_shows_no_key_when_its_row_cannot_be_written(product, superuser):
    engine = put_engine(product)
    client = log_in("rita", REVEAL, raise_request_exception=False)
    superuser.execute("ALTER TABLE audit_log ADD CONSTRAINT no_looking CHECK (action <> 'key_reveal')")
    try:
        response = client.post(f"{LIST}{engine.pk}/reveal_key/")
    finally:
        superuser.execute("ALTER TABLE audit_log DROP CONSTRAINT no_looking")
    assert response.status_code == 500
    assert "sk-sept-" not in response.text


def test_reveal_of_a_destroyed_engine_is_refused(product):
    engine = put_engine(product, status=Status.DESTROYED, destroyed_at=timezone.now(), key_hash="", key_ciphertext="")
    response = log_in("rita", REVEAL).post(f"{LIST}{engine.pk}/reveal_key/")
    assert told(response) == ["The engine is destroyed."]
    assert not rows(engine)


def test_reveal_under_another_master_key_says_so(product):
    engine = put_engine(product, key_ciphertext="gAAAA-not-ours")
    response = log_in("rita", REVEAL).post(f"{LIST}{engine.pk}/reveal_key/")
    assert "another master key" in told(response)[0]
    assert not rows(engine)


# -- lists -------------------------------------------------------------------------------------------------------------


def test_lists_find_exactly_and_count_nothing(product):
    alice, bob = put_engine(product), put_engine(product, "bob")
    gone = put_engine(product, "carol", Status.DESTROYED, destroyed_at=timezone.now())
    operation = put_operation(bob)
    client = log_in("rita")
    cases = {
        LIST: {alice, bob, gone}, f"{LIST}?status=living": {alice, bob}, f"{LIST}?status=destroyed": {gone},
        f"{LIST}?q=alice": {alice}, f"{LIST}?q=alic": set(), f"{LIST}?q={bob.pk}": {bob}, f"{LIST}?q=acme": {alice, bob, gone},
        f"{OPERATIONS}?q=bob": {operation}, f"{OPERATIONS}?q={operation.pk}": {operation}, f"{OPERATIONS}?q=alice": set(),
        f"{OPERATIONS}?state=open&kind=stop": {operation}, f"{OPERATIONS}?state=failed": set(),
    }  # fmt: skip
    for address, expected in cases.items():
        with CaptureQueriesContext(connection) as queries:
            text = client.get(address).text
        assert set(re.findall(r"field-(?:user_id|opened)[^>]*><a[^>]*?/([0-9a-f-]{36})/change/", text)) == {
            str(it.pk) for it in expected
        }
        assert not [entry["sql"] for entry in queries if "COUNT(" in entry["sql"].upper()], address


def test_operation_page_shows_its_steps_rows_and_error(product, carry_out, running_engine):
    operation = carry_out(lifecycle.stop(running_engine, by=actors.SYSTEM, reason="quiet hours"))
    Operation.objects.filter(pk=operation.pk).update(error_code="boot_timeout", error_message="Not <healthy>.")
    text = log_in("rita").get(f"{OPERATIONS}{operation.pk}/change/").text
    for words in ("claimed", "stopping", "succeeded", "quiet hours", "running → stopped", "boot_timeout", "Not &lt;healthy&gt;."):
        assert words in text, words


def test_verb_on_selected_engines_stops_at_the_first_while_the_database_cannot_be_written(product, superuser):
    engines = [put_engine(product, name) for name in ("alice", "bob")]
    client = log_in("rita", *ALL)
    selected = {"action": "stop", "_selected_action": [engine.pk for engine in engines], "confirmed": "yes"}
    with refusing(superuser, "engines_operation", "25006"):
        (message,) = told(client.post(LIST, selected))
    assert message.endswith(": the database is not available just now; nothing was begun.")
    assert not Operation.objects.exists()
