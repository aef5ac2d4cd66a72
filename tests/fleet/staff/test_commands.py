"""The commands about users leave rows, and take only passwords that the rules allow."""

import getpass
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from audit.models import AuditRow
from common import context
from fleet.staff import brakes
from tests.staff import hire

PASSWORD = "correct horse battery staple"


def answer(monkeypatch, *answers):
    """Type the answers, as a person would on a terminal."""
    typed = iter(answers)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(typed))


def test_createsuperuser_leaves_a_row(db, monkeypatch):
    answer(monkeypatch, PASSWORD, PASSWORD)
    call_command("createsuperuser", username="root")
    assert User.objects.get().check_password(PASSWORD)
    [row] = AuditRow.objects.all()
    assert (row.action, row.actor, row.metadata["user"], row.metadata["cause"]) == (
        "staff_change",
        "system",
        "root",
        "createsuperuser",
    )
    assert row.metadata["after"]["is_superuser"] is True
    assert "password" not in row.metadata["after"]


def test_createsuperuser_asks_nothing_with_noinput(db, monkeypatch):
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", PASSWORD)
    call_command("createsuperuser", "--noinput", username="root")
    assert User.objects.get().is_superuser


@pytest.mark.parametrize(
    ("username", "answers", "words"),
    [
        ("root", ("short", "short"), "at least 12 characters"),
        ("root", (PASSWORD, PASSWORD + "!"), "differ"),
        ("ro/ot", (), "valid username"),
        ("taken", (), "already exists"),
        ("\uff34aken", (), "is called taken"),
        ("t\u0430ken", (), "mixes letters"),
    ],
)
def test_createsuperuser_says_what_is_wrong(db, monkeypatch, username, answers, words):
    hire("taken")
    answer(monkeypatch, *answers)
    with pytest.raises(CommandError, match=words):
        call_command("createsuperuser", username=username)
    assert User.objects.count() == 1


def test_end_pause_lets_a_name_and_an_address_try_again(db):
    with context.of_call(context.Call(uuid4(), client_ip="2001:db8::1")):
        for _ in range(12):
            brakes.failed("root")
        call_command("end_pause", user="root")
        with pytest.raises(brakes.Paused):
            brakes.check("root")
        call_command("end_pause", address="2001:db8::2")
        brakes.check("root")
    for wrong in ({}, {"address": "here"}):
        with pytest.raises(CommandError):
            call_command("end_pause", **wrong)


def test_changepassword_leaves_a_row(db, monkeypatch):
    hire("rita")
    answer(monkeypatch, PASSWORD, PASSWORD)
    call_command("changepassword", "rita")
    assert User.objects.get().check_password(PASSWORD)
    [row] = AuditRow.objects.all()
    assert row.metadata == {"user": "rita", "change": "changed", "fields": ["password"], "cause": "changepassword"}
    with pytest.raises(CommandError, match="No user is called 'nina'"):
        call_command("changepassword", "nina")
