"""Staff change their own password: with brakes on guesses of the old one, twelve characters, a row, and other sessions ended."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client

from audit.models import AuditRow
from tests import waiting
from tests.fleet.staff.test_users import poster, someone_waits
from tests.staff import hire

OLD, NEW = "correct horse battery staple", "another long password"
PAGE = "/admin/password_change/"


def change(client, old=OLD, new=NEW):
    return client.post(PAGE, {"old_password": old, "new_password1": new, "new_password2": new})


def test_own_password_is_changed_with_a_row_and_ends_other_sessions(db):
    rita = hire("rita", password=OLD)
    here, elsewhere = Client(), Client()
    here.force_login(rita)
    elsewhere.force_login(rita)
    assert "at least 12 characters" in change(here, new="short-words").text
    assert change(here).status_code == 302
    assert User.objects.get().check_password(NEW)
    [row] = AuditRow.objects.filter(action="staff_change")
    assert (row.actor, row.metadata) == ("admin:rita", {"user": "rita", "change": "changed", "fields": ["password"]})
    assert here.get("/admin/").status_code == 200
    assert elsewhere.get("/admin/").status_code == 302


@pytest.mark.parametrize("change", [{"is_active": False}, {"is_staff": False}, {"is_superuser": False}, {"password": "!reset"}])
def test_own_password_undoes_no_change_made_meanwhile(db, change):
    rita = hire("rita", superuser=True, password=OLD)
    client = Client()
    client.force_login(rita)
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            User.objects.filter(pk=rita.pk).update(**change)
            answer = pool.submit(poster(client, PAGE, {"old_password": OLD, "new_password1": NEW, "new_password2": NEW}))
            waiting.until(someone_waits, 10, "the request waits for the row")
        answer.result(10)
    rita.refresh_from_db()
    assert {name: getattr(rita, name) for name in change} == change
    fields = [row.metadata["fields"] for row in AuditRow.objects.filter(action="staff_change")]
    assert fields == ([["password"]] if "is_superuser" in change else [])


def test_guesses_of_the_old_password_are_slowed_and_recorded(db):
    client = Client()
    client.force_login(hire("rita", password=OLD))
    answers = [change(client, old="wrong").status_code for _ in range(6)]
    assert answers[:4] == [200] * 4
    assert 429 in answers[4:]
    assert AuditRow.objects.filter(action="staff_login_failed", metadata__user="rita").exists()
    assert User.objects.get().check_password(OLD)
