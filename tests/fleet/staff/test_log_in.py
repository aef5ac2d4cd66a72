"""The log-in of staff: a row for each, brakes before any hash, and nothing that a guesser learns."""

import contextlib

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.test import Client

from audit.models import AuditRow
from common import valkey
from fleet.staff import brakes, hashers, passwords
from tests import floods
from tests.engines.crew import in_parallel
from tests.freezing import frozen_valkey
from tests.staff import hire, prove

PASSWORD = "correct horse battery staple"
LOGIN = "/admin/login/"


@pytest.fixture
def root(db):
    """A superuser with a password."""
    return hire("root", superuser=True, password=PASSWORD)


def attempt(username="root", password="wrong", address="192.0.2.7", client=None):
    return (client or Client()).post(LOGIN, {"username": username, "password": password}, REMOTE_ADDR=address)


def rows(action):
    return list(AuditRow.objects.filter(action=action).order_by("id"))


def failures(username, count, address="192.0.2.7"):
    """Count failures without the hashes that they would take."""
    from common import context

    with context.of_call(context.Call(context.current().call_id, client_ip=address)):
        for _ in range(count):
            brakes.failed(username)


# -- the record --------------------------------------------------------------------------------------------------------


def test_log_in_and_log_out_are_rows(root, caplog):
    caplog.set_level("INFO")
    client = Client(headers={"User-Agent": "a browser"})
    assert attempt(password=PASSWORD, client=client)["Location"] == "/admin/"
    assert client.get("/admin/").status_code == 200
    assert client.post("/admin/logout/", REMOTE_ADDR="192.0.2.8")["Location"] == LOGIN
    assert client.get("/admin/")["Location"].startswith(LOGIN)
    [login], [logout] = rows("staff_login"), rows("staff_logout")
    assert (login.actor, login.metadata, login.client_ip, login.user_agent) == (
        "admin:root",
        {"method": "password"},
        "192.0.2.7",
        "a browser",
    )
    assert (logout.actor, logout.metadata, logout.client_ip) == ("admin:root", {}, "192.0.2.8")
    assert {"staff_login", "staff_logout"} <= {record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)}
    assert not rows("staff_login_failed")


def test_log_in_that_cannot_be_recorded_is_none(root, superuser):
    superuser.execute("DELETE FROM audit_action WHERE action LIKE 'staff_log%'")
    client = Client(raise_request_exception=False)
    try:
        assert attempt(password=PASSWORD, client=client).status_code == 500
        assert User.objects.get().last_login is None
        assert client.get("/admin/")["Location"].startswith(LOGIN)
        client.force_login(root)
        assert client.post("/admin/logout/").status_code == 500
        assert client.get("/admin/").status_code == 200
    finally:
        for action in ("staff_login", "staff_login_failed", "staff_logout"):
            superuser.execute("INSERT INTO audit_action VALUES (%s, 'standard')", [action])


def test_log_out_needs_a_form(root):
    client = Client()
    client.force_login(root)
    assert client.get("/admin/logout/").status_code == 405
    assert client.get("/admin/").status_code == 200


def test_failures_are_two_rows_a_minute_with_names_and_addresses(root, caplog):
    assert "Please enter the correct" in attempt().text
    attempt(address="192.0.2.8")
    attempt("correct horse battery staple", "oops", address="192.0.2.9")
    assert floods.written() == 1
    first, rest = rows("staff_login_failed")
    assert (first.actor, first.client_ip, first.user_id) == ("anonymous", "192.0.2.7", None)
    assert first.metadata == {"rule": "wrong_password", "user": "root"}
    assert rest.metadata["count"] == 2
    assert rest.metadata["users"] == {"root from 192.0.2.8": 1, "no user from 192.0.2.9": 1}
    lines = [
        record.msg for record in caplog.records if isinstance(record.msg, dict) and record.msg["event"] == "staff_login_failed"
    ]
    assert [(line["user"], line["address"], line["reason"]) for line in lines] == [
        ("root", "192.0.2.7", "wrong_password"),
        ("root", "192.0.2.8", "wrong_password"),
        ("", "192.0.2.9", "wrong_password"),
    ]
    assert "horse" not in caplog.text + str([row.metadata for row in rows("staff_login_failed")])


def test_user_who_is_no_staff_gets_the_same_answer(db):
    User.objects.create_user("outsider", password=PASSWORD)
    assert "Please enter the correct" in attempt("outsider", PASSWORD).text
    [row] = rows("staff_login_failed")
    assert row.metadata == {"rule": "not_staff", "user": "outsider"}


def test_log_in_over_another_session_ends_that_session_with_a_row(root):
    client = Client()
    client.force_login(hire("nina"))
    key = client.cookies["sessionid"].value
    attempt(password=PASSWORD, client=client)
    assert [row.actor for row in rows("staff_logout")] == ["admin:nina"]
    old = Client()
    old.cookies["sessionid"] = key
    assert old.get("/admin/").status_code == 302


def test_hash_of_an_older_version_is_renewed_and_never_over_a_newer_password(root):
    weak = PBKDF2PasswordHasher().encode(PASSWORD, "salt-of-the-test-12345", 1000)
    User.objects.update(password=weak)
    attempt(password=PASSWORD)
    renewed = User.objects.get()
    assert renewed.password != weak
    assert renewed.check_password(PASSWORD)
    assert not rows("staff_change")
    stale = User.objects.get()
    stale.password = weak
    passwords._renew_hash(stale, "the old password")
    assert User.objects.get().password == renewed.password


@pytest.mark.parametrize("charset", ["idna", "base64", "undefined", "unicode_escape", "utf-16"])
def test_form_in_a_charset_that_no_browser_sends_is_refused(db, charset):
    body = '--B\r\nContent-Disposition: form-data; name="username"\r\n\r\n\\ud800x\r\n--B--\r\n'
    client = Client(raise_request_exception=False)
    answer = client.generic("POST", LOGIN, body.encode(), f"multipart/form-data; boundary=B; charset={charset}")
    assert answer.status_code == 415


@pytest.mark.parametrize("password", ["a" * 12, " " * 12, "\u200b" * 12, "short"])
def test_weak_password_is_refused(db, password):
    with pytest.raises(ValidationError):
        validate_password(password)
    validate_password(PASSWORD)


# -- the brakes --------------------------------------------------------------------------------------------------------


def test_sixty_wrong_passwords_cost_few_hashes_and_growing_pauses(root):
    answers = [attempt() for _ in range(60)]
    slowed = [answer for answer in answers if answer.status_code == 429]
    assert [answer.status_code for answer in answers[:4]] == [200] * 4
    assert len(slowed) >= 50
    assert all(1 <= int(answer["Retry-After"]) <= 900 for answer in slowed)
    assert "Too many failed log-ins. Try again in" in slowed[0].text
    assert {row.metadata["rule"] for row in rows("staff_login_failed")} == {"wrong_password", "paused"}


def test_pause_grows_and_ends():
    pauses = [brakes.OF_NAME.pause_s(failures) for failures in range(1, 60)]
    assert pauses[:8] == [0, 0, 0, 1, 2, 4, 8, 16]
    assert max(pauses) == pauses[-1] == 900


def test_right_password_waits_for_the_pause_without_a_hash(root):
    failures("root", 6)
    taken = [hashers._of_strangers.acquire(blocking=False) for _ in range(hashers.OF_STRANGERS)]  # a hash would be refused
    try:
        answer = attempt(password=PASSWORD)
    finally:
        for _ in taken:
            hashers._of_strangers.release()
    assert (answer.status_code, answer["Retry-After"]) == (429, "4")
    assert attempt("somebody-else", address="192.0.2.9").status_code == 200


def test_address_is_slowed_over_all_names_and_by_its_network(root):
    for number in range(14):
        failures(f"name-{number}", 1, address=f"2001:db8:0:1::{number + 1:x}")
    assert attempt(password=PASSWORD, address="2001:db8:0:1::ffff").status_code == 429
    assert attempt(password=PASSWORD, address="2001:db8:0:2::1").status_code == 302


def test_log_in_forgets_the_failures_of_its_name_and_not_of_its_address(root):
    failures("root", 3)
    assert attempt(password=PASSWORD).status_code == 302
    kept = [int(valkey.client().get(key)) for key in valkey.client().keys("{log-in}/failures/*")]
    assert kept == [3]


def test_brakes_hold_while_valkey_is_away(root):
    with frozen_valkey():
        failures("root", 6)
        assert attempt(password=PASSWORD).status_code == 429
        floods.end_minutes_here()


def test_whoever_reaches_valkey_reads_no_name_and_stops_nobody_for_long(root):
    failures("root", 5)
    client = valkey.client()
    keys = client.keys("{log-in}/*")
    assert keys
    assert not any(b"root" in key or b"192" in key for key in keys)
    for key in keys:
        client.delete(key)
        client.lpush(key, "spoilt")
    assert attempt().status_code == 200
    client.set(brakes._PAUSE + brakes.OF_NAME.digest("root"), "1", ex=10**6)
    assert int(attempt()["Retry-After"]) == 900


# -- hashes ------------------------------------------------------------------------------------------------------------


def test_two_hashes_at_a_time_and_no_long_line_for_them(root):
    running, most = [], []

    class Watched(hashers.TakingTurns):
        def encode(self, password, salt, iterations=None):
            with hashers.turn():
                running.append(1)
                most.append(len(running))
                try:
                    return super().encode(password, salt, 200_000)
                finally:
                    running.pop()

    def call(number):
        return Watched().encode("x", "salt")

    results = in_parallel(call, range(12))
    refused = [result for result in results if isinstance(result, brakes.Paused)]
    assert max(most) == 2
    assert len(refused) >= 4
    assert len(results) - len(refused) >= 4
    with contextlib.ExitStack() as held:
        held.enter_context(hashers.turn())
        held.enter_context(hashers.turn())  # a thread that has its turn goes on with it


def test_crowd_at_the_log_in_page_gets_429_and_leaves_places_to_staff(root):
    client = Client()
    client.force_login(root)
    taken = [hashers._of_strangers.acquire(blocking=False) and hashers._places.acquire() for _ in range(hashers.OF_STRANGERS)]
    try:
        answer = attempt(password=PASSWORD)
        assert (answer.status_code, answer["Retry-After"]) == (429, "1")
        change = {"old_password": PASSWORD, "new_password1": "another long password", "new_password2": "another long password"}
        assert client.post("/admin/password_change/", change).status_code == 302
    finally:
        for _ in taken:
            hashers._places.release()
            hashers._of_strangers.release()


def test_page_without_a_place_to_hash_says_when_to_come_back(root):
    client = Client(raise_request_exception=False)
    client.force_login(root)
    prove(client)
    taken = [hashers._places.acquire(blocking=False) for _ in range(hashers.PLACES)]
    try:
        answer = client.post("/admin/auth/user/add/", {"username": "nina", "password1": PASSWORD, "password2": PASSWORD})
        assert (answer.status_code, answer["Retry-After"]) == (503, "1")
    finally:
        for _ in taken:
            hashers._places.release()


@pytest.mark.parametrize(
    ("path", "leads_to"), [("/admin/engines/engine/", "/admin/engines/engine/"), ("https://evil.test/", "/admin/")]
)
def test_log_in_leads_back_to_our_pages_only(root, path, leads_to):
    answer = Client().post(f"{LOGIN}?next={path}", {"username": "root", "password": PASSWORD, "next": path})
    assert answer["Location"] == leads_to
