"""What staff do in a browser, on real processes from the click to the engine."""

import re

import pyotp
import pytest
import requests

from common import times
from engines.models import Engine, Operation
from tests import waiting
from tests.browser.conftest import PASSWORD
from tests.conftest import make_product


@pytest.fixture
def provision(stack, product):
    """Provision an engine through the API; returns it."""

    def provision(user_id):
        answer = stack.call("POST", "/engines/provision", product.key, {"user_id": user_id})
        assert answer.status_code == 200, answer.text
        return Engine.objects.get(pk=answer.json()["engine_id"])

    return provision


def settled(engine, status):
    """Wait until the engine is there and nothing is under way."""

    def look():
        engine.refresh_from_db()
        return engine.status == status and not Operation.objects.filter(engine=engine, finished_at=None).exists()

    waiting.until(look, 30, f"{engine.user_id} is {status}")


def open_page(page, user_id):
    page.goto("/admin/engines/engine/")
    page.fill("#searchbar", user_id)
    page.press("#searchbar", "Enter")
    page.wait_for_url("**q=**")
    page.click(f"#result_list a:text-is('{user_id}')")
    page.wait_for_selector("#timeline")


def test_staff_run_an_engine_from_its_page(admin, provision):
    engine = provision("alice")
    open_page(admin, "alice")
    for verb, status in (
        ("Stop", "stopped"),
        ("Start", "running"),
        ("Sleep", "sleeping"),
        ("Wake", "running"),
        ("Restart", "running"),
    ):
        admin.click(f"button:has-text('{verb}')")
        admin.wait_for_selector(f"text={verb}: operation opened for alice")
        settled(engine, status)
        admin.reload()
    admin.click("a:has-text('Rotate key')")
    admin.fill("#id_reason", "left in a log")
    admin.click("button:has-text('Rotate key')")
    admin.wait_for_selector("text=Rotate key: operation opened for alice")
    settled(engine, "running")
    admin.reload()
    events = admin.locator("#timeline tbody tr td:nth-child(3)").all_inner_texts()
    moves = [event.strip().lower() for event in events if "health" not in event.lower()]
    assert moves == ["provision_requested", "provision", "stop", "start", "sleep", "wake", "restart", "rotate_key"]
    assert "left in a log" in admin.inner_text("#timeline")
    admin.click("#timeline a[href*='/operation/'] >> nth=-1")
    assert "succeeded" in admin.inner_text("ol.rh-steps")


def test_staff_reveal_a_key_and_destroy_the_engine(admin, provision):
    engine = provision("alice")
    open_page(admin, "alice")
    assert "sk-sept-" not in admin.content()
    admin.click("button:has-text('Reveal key')")
    key = admin.inner_text("#key")
    answer = requests.post(
        f"http://127.0.0.1:{engine.port}/execute", json={"input": "hello"}, headers={"X-Engine-Key": key}, timeout=10
    )
    assert answer.status_code == 200
    admin.click("text=Done")
    assert "sk-sept-" not in admin.content()
    assert "key_reveal" in admin.inner_text("#timeline").lower()
    admin.click("a:has-text('Destroy')")
    admin.click("text=Cancel")
    admin.click("a:has-text('Destroy')")
    admin.fill("#id_reason", "asked for by the customer")
    admin.click("button:has-text('Destroy')")
    settled(engine, "destroyed")
    admin.reload()
    assert "asked for by the customer" in admin.inner_text("#timeline")
    assert not admin.locator("button:has-text('Start'), a:has-text('Destroy'), button:has-text('Reveal')").count()


def test_staff_act_on_engines_they_tick(admin, provision):
    ticked, left = [provision("alice"), provision("bob")], provision("carol")
    admin.goto("/admin/engines/engine/")
    for engine in ticked:
        admin.check(f"input.action-select[value='{engine.pk}']")
    admin.select_option("select[name=action]", "stop")
    admin.click("button:has-text('Run')")
    admin.wait_for_selector("text=Stop: operation opened for")
    for engine in ticked:
        settled(engine, "stopped")
    settled(left, "running")


def test_staff_register_a_product_and_change_its_keys(admin, stack):
    def status(key):
        return stack.call("GET", "/engines", key).status_code

    admin.goto("/admin/policy/product/")
    admin.click("text=Register product")
    admin.fill("#id_slug", "Harbor!")
    admin.fill("#id_display_name", "Harbor Chat")
    admin.fill("#id_max_engines", "0")
    admin.click("main button:text-is('Register'), #main button:text-is('Register')")
    assert "starting with a letter or a digit" in admin.inner_text("#main")
    admin.fill("#id_slug", "harbor")
    admin.click("#main button:text-is('Register')")
    first = admin.inner_text("#key")
    assert status(first) == 200
    assert stack.call("POST", "/engines/provision", first, {"user_id": "alice"}).status_code == 429
    admin.click("text=Done")
    assert first not in admin.content()
    admin.fill("#id_max_engines", "1")
    admin.click("text=Replace policy")
    assert stack.call("POST", "/engines/provision", first, {"user_id": "alice"}).status_code == 200
    admin.click("text=Issue key")
    admin.click("#main button:text-is('Issue')")
    second = admin.inner_text("#key")
    admin.click("text=Done")
    admin.click(f"#keys tr:has-text('{first.removeprefix('pk-sept-')[:6]}') a:text-is('Revoke')")
    admin.click("#main button:text-is('Revoke')")
    admin.wait_for_selector("text=is revoked")
    assert (status(first), status(second)) == (401, 200)


def test_staff_set_up_a_second_factor_and_log_in_with_a_code(admin):
    def menu(entry):
        admin.click("[x-on\\:click*=openUserLinks] >> nth=0")
        admin.click(f"text={entry}")

    menu("Second factor")
    admin.click("button:text-is('Set up')")
    assert admin.locator("svg.rh-qr").bounding_box()["width"] > 150
    phone = pyotp.TOTP(admin.inner_text("#secret"))
    admin.fill("#id_code", phone.at(times.database_now()))
    admin.click("button:text-is('Confirm')")
    assert len(admin.inner_text("#codes").split()) == 10
    admin.click("text=Done")
    admin.wait_for_selector("text=Recovery codes left")
    menu("Log out")
    admin.fill("#id_username", "root")
    admin.fill("#id_password", PASSWORD)
    admin.click("button[type=submit]")
    admin.fill("#id_code", phone.at(times.database_now(), counter_offset=1))
    admin.click("button[type=submit]")
    admin.wait_for_selector("text=Under way")


def test_every_page_opens_without_a_complaint(admin, provision):
    engine = provision("alice")
    make_product("other")
    for path in (
        "engines/engine",
        "engines/operation",
        "engines/unregisteredengine",
        "jobs/job",
        "policy/product",
        "policy/adminkey",
        "audit/auditrow",
        "auth/user",
        "auth/group",
    ):
        admin.goto(f"/admin/{path}/")
        admin.wait_for_load_state("networkidle")
        if admin.locator("#changelist-filter").count():
            admin.click("#changelist a:has-text('Filters')")
            admin.wait_for_selector("#changelist-filter h3")
            admin.keyboard.press("Escape")
        if admin.locator("#result_list tbody th a").count():
            admin.click("#result_list tbody th a >> nth=0")
            admin.wait_for_load_state("networkidle")
            assert re.search(r"/change/", admin.url)
    admin.goto(f"/admin/engines/engine/{engine.pk}/change/")
    admin.emulate_media(color_scheme="dark")
    admin.wait_for_load_state("networkidle")
