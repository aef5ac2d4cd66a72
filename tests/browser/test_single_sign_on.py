"""Single sign-on in a browser: its policy lets it go to the provider and back, and its cookies come along."""

import contextlib

import pytest
from django.contrib.auth.models import Group, Permission

from tests.conftest import running_stack
from tests.engines.registry import put_engine
from tests.fleet.staff.openid_provider import CLIENT_ID, CLIENT_SECRET, OpenIDProvider


@pytest.fixture
def provider(db):
    """A provider whose person comes to our group `operators`, which may look at keys of engines."""
    group = Group.objects.create(name="operators")
    group.permissions.set(Permission.objects.filter(codename__in=["view_engine", "reveal_engine_key"]))
    person = {"sub": "sub-of-nina", "preferred_username": "nina", "groups": ["platform"]}
    with contextlib.closing(OpenIDProvider(**person)) as made:
        yield made


@pytest.fixture
def web(provider):
    """A web server of its own, because it needs the provider in its environment."""
    settings = {
        "ORCH_OIDC_ISSUER": provider.issuer,
        "ORCH_OIDC_CLIENT_ID": CLIENT_ID,
        "ORCH_OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "ORCH_OIDC_GROUPS": "platform=operators",
    }
    with running_stack("web", edition="small", **settings) as processes:
        yield processes


@pytest.fixture
def page(chromium, web):
    """A page of a browser that has never been here. Whatever the browser complains about fails the test."""
    said: list[str] = []
    with contextlib.closing(chromium.new_context(base_url=web.url)) as session:
        made = session.new_page()
        made.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        made.on("pageerror", lambda error: said.append(str(error)))
        yield made
    assert said == []


def test_person_logs_in_at_the_provider_and_confirms_there(page, product):
    engine = put_engine(product, "alice")
    path = f"/admin/engines/engine/{engine.pk}/change/"
    page.goto(path)
    page.click("a:has-text('Log in with single sign-on')")
    page.wait_for_url(f"**{path}")
    page.click("button:has-text('Reveal key')")  # the provider has not said when it asked nina who she is
    page.click("#confirm-at-provider")
    page.wait_for_url(f"**{path}")
    page.click("button:has-text('Reveal key')")
    assert page.inner_text("#key").startswith("sk-sept-")


def test_link_on_another_site_leads_to_the_log_in_page(page, web, provider):
    page.goto(f"{provider.issuer}/keys")
    page.set_content(f'<a href="{web.url}/admin/provider/">begin</a>')
    page.click("a")
    page.wait_for_url("**/admin/login/?next=%2Fadmin%2F")
    assert "authorize" not in provider.asked
