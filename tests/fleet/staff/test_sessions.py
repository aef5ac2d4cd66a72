"""Sessions of staff: two ends by the database's clock, digests at rest, and nothing that a page does by itself prolongs them."""

from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.test import Client

from common import times
from fleet.staff import sessions
from tests.staff import hire, log_in

NAVIGATION, BACKGROUND = {"Sec-Fetch-Mode": "navigate"}, {"Sec-Fetch-Mode": "cors"}


@pytest.fixture
def client(db):
    """Somebody who has logged in just now."""
    client = log_in("rita")
    session = client.session
    session.begin()
    session.save()
    return client


def later(client, **passed):
    """As if that much time had passed since the log-in and the last request."""
    session, row = client.session, Session.objects.get()
    began = times.database_now() - timedelta(**passed)
    session[sessions.BEGAN] = began.isoformat()
    session.save()
    Session.objects.update(expire_date=row.expire_date - timedelta(**passed))


def left():
    return Session.objects.get().expire_date - times.database_now()


def test_session_ends_thirty_minutes_after_the_last_activity(client):
    assert client.get("/admin/").status_code == 200
    assert timedelta(minutes=29) < left() <= timedelta(minutes=30)
    later(client, minutes=29)
    assert client.get("/admin/", headers=NAVIGATION).status_code == 200
    assert left() > timedelta(minutes=29)
    later(client, minutes=31)
    assert client.get("/admin/")["Location"].startswith("/admin/login/")


def test_requests_that_a_page_makes_by_itself_are_no_activity(client):
    client.get("/admin/")
    later(client, minutes=20)
    for _ in range(3):
        assert client.get("/admin/", headers=BACKGROUND).status_code == 200
    assert left() < timedelta(minutes=11)


def test_session_ends_twelve_hours_after_the_log_in(client):
    session = client.session
    session[sessions.BEGAN] = (times.database_now() - timedelta(hours=11, minutes=50)).isoformat()
    session.save()
    assert client.get("/admin/").status_code == 200
    assert left() <= timedelta(minutes=10)
    Session.objects.update(expire_date=times.database_now())
    assert client.get("/admin/").status_code == 302


def test_activity_does_not_bring_back_a_session_that_has_ended(client):
    session = client.session
    assert session[sessions.BEGAN]
    Session.objects.update(expire_date=times.database_now() - timedelta(seconds=1))
    session.prolong()
    assert left() < timedelta()


def test_session_without_a_complete_log_in_is_short_and_stays_so(db):
    client = Client()
    client.force_login(hire("rita"))
    client.get("/admin/")
    assert left() <= timedelta(minutes=10)


def test_table_does_not_have_what_the_cookie_has(client):
    key = client.cookies["sessionid"].value
    row = Session.objects.get()
    assert key not in row.session_key + row.session_data
    thief = Client()
    thief.cookies["sessionid"] = row.session_key
    assert thief.get("/admin/").status_code == 302
    assert client.get("/admin/").status_code == 200


def test_cookie_is_for_the_admin_only(db):
    hire("root", superuser=True, password="correct horse battery staple")
    client = Client()
    client.post("/admin/login/", {"username": "root", "password": "correct horse battery staple"})
    cookie = client.cookies["sessionid"]
    assert (cookie["path"], cookie["httponly"], cookie["samesite"], cookie["max-age"]) == ("/admin/", True, "Lax", 12 * 3600)
    assert left() > timedelta(minutes=29)


def test_log_in_removes_sessions_that_have_ended(client):
    Session.objects.update(expire_date=times.database_now() - timedelta(seconds=1))
    log_in("nina")
    assert Session.objects.count() == 1
