"""Unregistered engines in the admin: what the list and the page show, and what staff decide."""

import re

import pytest
from django.contrib.messages import get_messages

from audit.models import AuditRow
from engines.models import Engine, Status, UnregisteredEngine
from tests.engines.registry import put_engine, put_unregistered
from tests.staff import log_in

LIST = "/admin/engines/unregisteredengine/"
VIEW, ADOPT = "engines.view_unregisteredengine", "engines.adopt_unregisteredengine"
FORGET = "engines.forget_unregisteredengine"


@pytest.fixture
def staff(db):
    return log_in("rita", VIEW, ADOPT, FORGET)


def told(response):
    return [str(message) for message in get_messages(response.wsgi_request)]


def test_list_shows_what_the_runtime_has_and_the_reverse(product, staff):
    put_unregistered("alice", runs=True)
    put_unregistered("", product_slug="", image="", incarnation=0)
    put_engine(product, "bob", differs="volume")
    text = staff.get(LIST).text
    for words in ("alice", "a volume and an instance that runs", "not known", "1 engine</a> of the registry has no volume"):
        assert words in text, words


def test_list_leaves_out_what_has_been_registered_since(product, staff):
    engine = put_engine(product, "alice")
    UnregisteredEngine.objects.create(engine_id=engine.pk, incarnation=1, has_volume=True, runs=True)
    assert str(engine.pk) not in staff.get(LIST).text


def test_page_offers_what_the_person_may_decide(staff):
    found = put_unregistered()
    text = staff.get(f"{LIST}{found.pk}/change/").text
    assert {"adopt", "forget"} <= set(re.findall(rf'href="{LIST}{found.pk}/(\w+)/"', text))
    viewer = log_in("nina", VIEW).get(f"{LIST}{found.pk}/change/").text
    assert f"{found.pk}/adopt/" not in viewer


def test_adopt_asks_and_then_registers_the_engine(product, staff):
    found = put_unregistered("alice")
    address = f"{LIST}{found.pk}/adopt/"
    asked = staff.get(address)
    assert "with its data and a new key" in asked.text
    assert "product_slug" not in asked.text
    answer = staff.post(address, {"reason": "restored"})
    engine = Engine.objects.get()
    assert (answer.url, engine.pk, engine.status, engine.user_id) == (LIST, found.pk, Status.STOPPED, "alice")
    assert f"/admin/engines/engine/{engine.pk}/change/" in told(answer)[0]
    row = AuditRow.objects.get(action="engine_adopted")
    assert (row.actor, row.metadata["reason"]) == ("admin:rita", "restored")


def test_adopt_asks_whose_engine_it_is_where_the_runtime_does_not_know(product, staff):
    found = put_unregistered("", product_slug="")
    address = f"{LIST}{found.pk}/adopt/"
    assert {"product_slug", "user_id", "reason"} <= set(re.findall(r'name="(\w+)"', staff.get(address).text))
    assert staff.post(address, {"reason": ""}).status_code == 200  # asks again
    staff.post(address, {"product_slug": "acme", "user_id": "alice"})
    assert Engine.objects.get().user_id == "alice"


def test_refused_adoption_is_told_and_changes_nothing(product, staff):
    put_engine(product, "alice")
    found = put_unregistered("alice")
    answer = staff.post(f"{LIST}{found.pk}/adopt/", {"reason": "restored on Monday"})
    assert "has an engine for this user already" in answer.text
    assert 'value="restored on Monday"' in answer.text
    assert UnregisteredEngine.objects.filter(pk=found.pk).exists()


def test_refusal_of_one_selected_engine_does_not_stop_the_others(product, staff):
    put_engine(product, "alice")
    found = [put_unregistered(user_id) for user_id in ("alice", "bob")]
    asked = {"action": "adopt", "_selected_action": [str(each.pk) for each in found], "confirmed": "yes"}
    words = told(staff.post(LIST, asked))
    assert any("has an engine for this user already" in each for each in words)
    assert UnregisteredEngine.objects.get().pk == found[0].pk


def test_forget_asks_and_then_stores_the_wish(staff):
    found = put_unregistered()
    address = f"{LIST}{found.pk}/forget/"
    assert "removed for good" in staff.get(address).text
    staff.post(address, {"reason": "left behind"})
    found.refresh_from_db()
    assert (found.asked_by, found.reason) == ("admin:rita", "left behind")
    text = staff.get(f"{LIST}{found.pk}/change/").text
    assert "being removed" in text
    assert f"{found.pk}/adopt/" not in text


def test_selected_engines_are_decided_together_after_a_question(product, staff):
    found = [put_unregistered(user_id) for user_id in ("alice", "bob", "eve")]
    asked = {"action": "adopt", "_selected_action": [str(each.pk) for each in found[:2]]}
    page = staff.post(LIST, asked)
    assert "alice of acme" in page.text
    assert Engine.objects.count() == 0
    staff.post(LIST, {**asked, "confirmed": "yes", "reason": "restored"})
    assert set(Engine.objects.values_list("user_id", flat=True)) == {"alice", "bob"}
    assert UnregisteredEngine.objects.get().user_id == "eve"


def test_decision_about_an_engine_that_is_not_unregistered_is_no_page(product, staff):
    engine = put_engine(product)
    assert staff.post(f"{LIST}{engine.pk}/forget/", {}).status_code == 404


def test_overview_and_engine_page_say_what_a_restore_left(product):
    put_unregistered()
    engine = put_engine(product, differs="volume")
    staff = log_in("nina", VIEW)
    overview = staff.get("/admin/").text
    assert "1 engine</a> of the runtime is not registered" in overview
    assert "1 engine</a> has no volume any more" in overview
    assert "its volume is gone" in staff.get(f"/admin/engines/engine/{engine.pk}/change/").text
    assert str(engine.pk) in staff.get("/admin/engines/engine/?instance=no_volume").text
    assert str(engine.pk) not in staff.get("/admin/engines/engine/?instance=differs").text
