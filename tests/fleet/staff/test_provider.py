"""The pages of single sign-on: the way to the provider and back, and who somebody is confirmed on it."""

import time
from datetime import timedelta
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.http import HttpResponse
from django.test import Client, RequestFactory

from common import times
from fleet.staff import confirmation, visits
from tests.engines.registry import put_engine
from tests.fleet.staff.single_sign_on import CALLBACK, START, answer_of, begin, come_back, go, is_logged_in, rows, told
from tests.staff import hire, prove


def test_answer_with_another_state_is_refused(provider, client):
    answer = answer_of(client, provider)
    assert "Begin again" in told(client.get(CALLBACK, {**answer, "state": "another"}), 400)
    assert "token" not in provider.asked
    assert client.get(CALLBACK, answer).status_code == 302  # a stranger's link has not ended the visit


def test_answer_to_another_browser_is_refused(provider, client):
    """Nobody is logged in to the account of whoever sends them a link."""
    of_attacker = answer_of(Client(), provider)
    begin(client)
    assert "Begin again" in told(client.get(CALLBACK, of_attacker), 400)
    assert "Begin again" in told(Client().get(CALLBACK, of_attacker), 400)
    assert not User.objects.exists()


def test_answer_serves_once(provider, client):
    answer = answer_of(client, provider)
    cookie = client.cookies[visits.COOKIE].value
    assert client.get(CALLBACK, answer).status_code == 302
    thief = Client()
    told(client.get(CALLBACK, answer), 400)  # our cookie is gone
    thief.cookies[visits.COOKIE] = cookie
    told(thief.get(CALLBACK, answer), 403)  # the provider's code has served
    assert not is_logged_in(thief)


def test_code_without_its_verifier_is_worth_nothing(provider, client):
    """The provider checks the verifier: with a code of another visit, the right state does not help."""
    of_other = answer_of(Client(), provider)
    own = answer_of(client, provider)
    told(client.get(CALLBACK, {"state": own["state"], "code": of_other["code"]}), 403)
    told(client.get(CALLBACK, own), 400)  # the visit is over


@pytest.mark.parametrize("cookie", ["", "x", "gAAAAA=="])
def test_cookie_that_is_not_ours_is_no_visit(provider, client, cookie):
    client.cookies[visits.COOKIE] = cookie
    told(client.get(CALLBACK, {"state": "", "code": "x"}), 400)


def test_visit_ends_after_its_time(provider, client):
    answer = answer_of(client, provider)
    old = visits.find(request_with(client))
    late = visits.Visit(**{**vars(old), "began": (times.database_now() - visits.KEPT).isoformat()})
    client.cookies[visits.COOKIE] = sealed(late)
    told(client.get(CALLBACK, answer), 400)


def request_with(client):
    request = RequestFactory().get(CALLBACK)
    request.COOKIES[visits.COOKIE] = client.cookies[visits.COOKIE].value
    return request


def sealed(visit):
    response = HttpResponse()
    visits.keep(response, visit)
    return response.cookies[visits.COOKIE].value


def test_start_costs_no_session_and_hides_its_secrets(provider, client):
    address = begin(client)
    query = parse_qs(urlsplit(address).query)
    assert query["code_challenge_method"] == ["S256"]
    assert query["scope"] == ["openid profile email"]
    assert query["redirect_uri"] == ["http://testserver/admin/provider/callback/"]
    assert "prompt" not in query
    cookie = client.cookies[visits.COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "Lax", START)
    assert query["nonce"][0] not in cookie.value
    assert not Session.objects.exists()


def test_link_on_another_site_begins_nothing(provider, client):
    answer = client.get(START, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer["Location"] == "/admin/login/?next=%2Fadmin%2F"
    assert visits.COOKIE not in client.cookies


def test_only_get_is_answered(provider, client):
    assert client.post(START).status_code == client.post(CALLBACK).status_code == 405


def test_pages_are_404_without_a_provider(db, client):
    assert client.get(START).status_code == client.get(CALLBACK).status_code == 404
    assert "/admin/provider/" not in client.get("/admin/login/").text


@pytest.mark.parametrize(
    ("given", "back"),
    [
        ("/admin/engines/engine/?q=alice", "/admin/engines/engine/?q=alice"),
        ("https://evil.example.com/admin/", "/admin/"),
        ("//evil.example.com/admin/", "/admin/"),
        ("/\\evil.example.com/admin/", "/admin/"),
        ("/administrator", "/admin/"),
        ("/docs/", "/admin/"),
        ("javascript:alert(1)", "/admin/"),
        ("/admin/\r\nX: y", "/admin/"),
        ("/admin/" + "x" * 1000, "/admin/"),
        ("", "/admin/"),
    ],
)
def test_way_back_stays_in_the_admin(provider, client, given, back):
    address = begin(client, f"{START}?{urlencode({'next': given})}")
    assert come_back(client, address)["Location"] == back


# -- asked again ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def revealer(provider, client):
    """A client logged in by the provider over ten minutes ago, whose user may look at keys of engines."""
    go(client)
    give(User.objects.get(), "engines.view_engine", "engines.reveal_engine_key")
    return prove(client, ago=timedelta(minutes=11))


def give(user, *permissions):
    for name in permissions:
        app, codename = name.split(".")
        user.user_permissions.add(Permission.objects.get(content_type__app_label=app, codename=codename))


def link_of(answer):
    """The link of the page that asks again."""
    return answer.text.split('id="confirm-at-provider" href="')[1].split('"')[0].replace("&amp;", "&")


def test_provider_confirms_and_leads_back_to_the_page_of_a_form(revealer, product):
    engine = put_engine(product, "alice")
    page = f"/admin/engines/engine/{engine.pk}/change/"
    asked = revealer.post(f"/admin/engines/engine/{engine.pk}/reveal_key/", headers={"Referer": f"http://testserver{page}"})
    assert "password_again" not in asked.text
    assert not rows("key_reveal")
    address = begin(revealer, link_of(asked))
    query = parse_qs(urlsplit(address).query)
    assert (query["prompt"], query["max_age"]) == (["login"], ["0"])
    assert come_back(revealer, address)["Location"] == page
    revealer.post(f"/admin/engines/engine/{engine.pk}/reveal_key/")
    assert [row.actor for row in rows("key_reveal")] == ["admin:nina"]


def with_session(client):
    request = RequestFactory().get("/admin/")
    request.session = client.session
    return request


def confirm(client, path="/admin/auth/user/add/"):
    """The answer to the callback after the question on a page without a form before it."""
    return go(client, f"{START}?again=yes&next={path}")


def test_page_without_a_form_is_led_back_to_itself(revealer):
    assert confirm(revealer)["Location"] == "/admin/auth/user/add/"
    assert confirmation.is_recent(with_session(revealer))


@pytest.mark.parametrize("referer", ["", "https://evil.example.com/admin/x/", "http://testserver/docs/"])
def test_way_back_from_a_form_of_elsewhere_is_the_overview(revealer, product, referer):
    engine = put_engine(product, "alice")
    asked = revealer.post(f"/admin/engines/engine/{engine.pk}/reveal_key/", headers={"Referer": referer})
    assert come_back(revealer, begin(revealer, link_of(asked)))["Location"] == "/admin/"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "sub-of-mona"},
        {"auth_time": 1_000_000_000},
        {"auth_time": None},
        {"auth_time": True},
        {"auth_time": "now"},
    ],
    ids=str,
)
def test_another_person_or_an_old_proof_does_not_confirm(revealer, provider, claims):
    provider.claims = claims
    told(confirm(revealer), 403)
    assert not confirmation.is_recent(with_session(revealer))
    assert User.objects.count() == 1
    assert is_logged_in(revealer)


def test_answer_for_another_user_of_the_browser_does_not_confirm(revealer, provider):
    answer = answer_of(revealer, provider, f"{START}?again=yes")
    revealer.force_login(hire("mona"))
    told(revealer.get(CALLBACK, answer), 403)
    assert not confirmation.is_recent(with_session(revealer))


def test_users_with_a_password_are_asked_for_it(provider):
    hire("root", superuser=True, password="a long password of root")
    client = Client()
    client.force_login(User.objects.get())
    asked = client.get("/admin/policy/product/register/")
    assert 'name="password_again"' in asked.text
    assert "confirm-at-provider" not in asked.text


def test_log_in_by_an_old_session_of_the_provider_confirms_nothing(provider, client):
    """Whoever finds an open browser could log out, and in again without a question."""
    for auth_time, is_recent in ((None, False), (int(time.time()) - 3600, False), (int(time.time()), True)):
        provider.claims = {"auth_time": auth_time}
        fresh = Client()
        go(fresh)
        assert is_logged_in(fresh)
        assert confirmation.is_recent(with_session(fresh)) is is_recent


def test_logged_in_user_who_begins_again_stays_logged_in(revealer, provider):
    asked = len(provider.asked)
    assert begin(revealer, f"{START}?next=/admin/engines/engine/") == "/admin/engines/engine/"
    assert len(provider.asked) == asked


# -- the log-in page -----------------------------------------------------------------------------------------------------


def test_log_in_page_has_the_button_and_keeps_the_way_back(provider, client):
    page = client.get("/admin/login/?next=/admin/engines/engine/%3Fq%3Dalice").text
    assert "Log in with Example Login" in page
    assert 'href="/admin/provider/?next=%2Fadmin%2Fengines%2Fengine%2F%3Fq%3Dalice"' in page
