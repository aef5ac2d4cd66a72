"""`manage.py doctor`: what is wrong, in sentences, and an exit code."""

import io

import pytest
from django.core.management import CommandError, call_command

from engines import hosts
from engines.models import Engine
from tests.engines.registry import put_engine, put_unregistered
from tests.staff import log_in


def diagnose():
    """The lines of `doctor`, and its last word if something is wrong."""
    out = io.StringIO()
    try:
        call_command("doctor", stdout=out)
    except CommandError as wrong:
        return out.getvalue().splitlines(), str(wrong)
    return out.getvalue().splitlines(), ""


@pytest.fixture
def differing(product):
    """Three engines that differ, of five: one of them stopped, and one destroyed engine that counts no more."""
    for number, differs in enumerate(("address,limits", "address", "unknown", "", "")):
        put_engine(product, f"user-{number}", differs=differs)
    put_engine(product, "gone", "destroyed", differs="address", destroyed_at="2026-01-01T00:00:00Z")


def test_doctor_says_that_nothing_is_wrong(product):
    put_engine(product)
    assert diagnose() == (["Nothing is wrong."], "")


def test_doctor_counts_engines_that_differ_per_host_and_fails(differing):
    (line,), last = diagnose()
    assert line.startswith("Host local: 3 of 5 engines are not made of what the settings and the registry say now")
    assert "(address 2, limits 1, unknown 1)" in line
    assert last == "1 fault found."


def test_doctor_names_a_runtime_and_a_disk_that_fail(product):
    hosts.mark_unreachable()
    hosts.note_disk(100, 1, is_low=True)
    lines, last = diagnose()
    assert [line.partition(":")[0] for line in lines] == ["Host local", "The disk with the engines' volumes is nearly full"]
    assert last == "2 faults found."


def test_doctor_tells_what_the_checks_say(product, settings):
    settings.ENV = settings.ENV.model_copy(update={"master_key": ""})
    lines, _ = diagnose()
    assert any("ORCH_MASTER_KEY is empty." in line and "fleet.E001" in line for line in lines)


def test_overview_and_list_show_the_engines_that_differ(differing):
    staff = log_in("rita")
    page = staff.get("/admin/").text
    assert "?instance=differs" in page
    assert "3 engines" in page
    listed = staff.get("/admin/engines/engine/?instance=differs").text
    assert [name in listed for name in ("user-0", "user-1", "user-2", "user-3", "gone")] == [True, True, True, False, False]
    shown = staff.get(f"/admin/engines/engine/{Engine.objects.get(user_id='user-0').pk}/change/").text
    assert "differs in address, limits; is made anew at its next start" in shown


def test_overview_says_nothing_where_no_engine_differs(product):
    put_engine(product)
    assert "?instance=differs" not in log_in("rita").get("/admin/").text


def test_doctor_tells_what_a_restore_has_left(product):
    put_unregistered()
    put_engine(product, differs="volume")
    lines, _ = diagnose()
    assert [line.partition(":")[0] for line in lines] == [
        "Engines of the runtime that are not registered",
        "Engines that have no volume any more",
    ]
