"""Pages that show a secret ask for the password once more, and lose nothing of what was sent."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import Group
from django.test import Client

from audit.models import AuditRow
from policy.models import AdminKey
from tests.staff import hire, prove

PASSWORD = "correct horse battery staple"
ISSUE = "/admin/policy/adminkey/issue/"


@pytest.fixture
def client(db):
    """A superuser whose password was last given over ten minutes ago."""
    client = Client()
    client.force_login(hire("root", superuser=True, password=PASSWORD))
    return prove(client, ago=timedelta(minutes=10, seconds=1))


def test_page_of_a_form_asks_first_and_then_leads_back(client):
    page = client.get(ISSUE)
    assert "Confirm that it is you" in page.text
    assert page["Cache-Control"].count("no-store")
    assert "The password is wrong." in client.post(ISSUE, {"password_again": "wrong", "repeat_request": "GET"}).text
    assert client.post(ISSUE, {"password_again": PASSWORD, "repeat_request": "GET"})["Location"] == ISSUE
    assert "Confirm that it is you" not in client.get(ISSUE).text


def test_form_that_was_sent_too_late_is_kept_and_sent_again(client):
    page = client.post(ISSUE, {"name": "deploy <key>"})
    assert '<input type="hidden" name="name" value="deploy &lt;key&gt;">' in page.text
    assert not AdminKey.objects.exists()
    done = client.post(ISSUE, {"name": "deploy key", "password_again": PASSWORD, "repeat_request": "POST"})
    assert "ak-sept-" in done.text
    assert AdminKey.objects.get().name == "deploy key"


def test_key_of_an_engine_asks_first(client, product, running_engine):
    path = f"/admin/engines/engine/{running_engine.pk}/reveal_key/"
    assert "Confirm that it is you" in client.post(path).text
    assert not AuditRow.objects.filter(action="key_reveal").exists()
    prove(client, ago=timedelta(minutes=9, seconds=50))
    assert "sk-sept-" in client.post(path).text


def test_page_that_was_sent_again_carries_nothing_out(client):
    group = Group.objects.create(name="night shift")
    path = f"/admin/auth/group/{group.pk}/delete/"
    assert "Confirm that it is you" in client.get(path).text
    prove(client)  # in another tab
    assert client.post(path, {"password_again": "anything", "repeat_request": "GET"})["Location"] == path
    assert Group.objects.exists()


def test_new_passwords_are_never_in_the_page(client):
    path = "/admin/auth/user/add/"
    assert "Confirm that it is you" in client.get(path).text
    page = client.post(path, {"username": "nina", "password1": "another long password", "password2": "another long password"})
    assert '<input type="hidden" name="username" value="nina">' in page.text
    assert "another long password" not in page.text


def test_clock_that_went_back_confirms_nobody(client):
    assert "Confirm that it is you" in prove(client, ago=timedelta(days=-3)).get(ISSUE).text


@pytest.mark.parametrize("path", ["register/", "{}/issue_key/", "{}/rotate_keys/"])
def test_pages_that_show_a_platform_key_ask_first(client, product, path):
    assert "Confirm that it is you" in client.get(f"/admin/policy/product/{path.format(product.pk)}").text


def test_guesses_are_slowed_and_recorded(client):
    answers = [client.post(ISSUE, {"password_again": "wrong", "repeat_request": "GET"}) for _ in range(6)]
    assert 429 in [answer.status_code for answer in answers]
    assert "Try again in" in answers[-1].text
    assert AuditRow.objects.filter(action="staff_login_failed", metadata__user="root").exists()


def test_permission_is_looked_at_before_the_password(db):
    client = Client()
    client.force_login(hire("rita"))
    assert client.get(ISSUE).status_code == 403
