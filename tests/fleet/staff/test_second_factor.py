"""The second factor of staff, with pyotp as the phone: set-up, log-ins, the setting that requires it, and removals."""

import io
import re
import uuid
from datetime import timedelta

import pyotp
import pytest
from cryptography.fernet import Fernet
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import URLPattern
from django.urls.resolvers import RoutePattern

from audit import actors
from audit.actions import Action
from audit.models import AuditRow
from common import times, valkey
from fleet.staff import brakes, pending, second_factor
from fleet.staff.confirmation import METHOD
from fleet.staff.models import SecondFactor
from fleet.staff.pending import LONGEST, PENDING
from fleet.staff.second_factor import AlreadySetUp, NotSetUp, WrongCode
from policy import crypto
from tests.engines.crew import in_parallel
from tests.staff import hire, prove

PAGE, CODE, LOGIN = "/admin/second-factor/", "/admin/login/code/", "/admin/login/"
PASSWORD = "a password of the test"
USABLE = "pbkdf2_sha256$1$salt$nobody-knows"  # a password that was set; nobody gives it


class Phone:
    """An authenticator app with the secret of a user."""

    def __init__(self, secret):
        self.totp = pyotp.TOTP(secret)

    def code(self, steps=0):
        """The code that the app shows now, or so many steps of 30 s later."""
        return self.totp.at(times.database_now(), counter_offset=steps)

    def wrong(self):
        """A code that the app does not show near now."""
        near = {self.code(steps) for steps in range(-3, 4)}
        return next(
            code for code in ("000000", "111111", "222222", "333333", *map(str, range(444444, 444460))) if code not in near
        )


def equip(user):
    """Set up a second factor: the phone, and the recovery codes. No code is used up."""
    phone = Phone(second_factor.begin(user))
    codes = second_factor.confirm(user, phone.code(), by=actors.of_user(user))
    SecondFactor.objects.update(last_step=0)
    return phone, codes


@pytest.fixture
def mara(db):
    """A member of staff with a password that nobody gives, which costs no hash."""
    user = hire("mara")
    User.objects.filter(pk=user.pk).update(password=USABLE)
    return User.objects.get(pk=user.pk)


def half_way(user, back="/admin/"):
    """A client whose user has given the right password."""
    client, request = Client(), RequestFactory().get(LOGIN)
    request.session = client.session
    pending.begin(request, user, back)
    request.session.save()
    return client


def client_of(user, method="password"):
    """A client of the user, who logged in just now."""
    client = Client()
    client.force_login(user)
    prove(client)
    return note(client, METHOD, method)


def note(client, key, value):
    session = client.session
    session[key] = value
    session.save()
    return client


def try_code(client, code):
    return client.post(CODE, {"code": code})


def is_in(client):
    return client.get("/admin/").status_code == 200


def rows(action=Action.STAFF_CHANGE):
    return [(row.actor, row.metadata) for row in AuditRow.objects.filter(action=action).order_by("id")]


def change(fields=("second_factor",), **more):
    return {"user": "mara", "change": "changed", "fields": list(fields), **more}


# -- codes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "accepted"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
def test_check_accepts_codes_up_to_a_step_away(mara, steps, accepted):
    phone, _ = equip(mara)

    def look():
        began = phone.totp.timecode(times.database_now())
        SecondFactor.objects.update(last_step=0)
        found = second_factor.check(mara, phone.code(steps))
        return found, phone.totp.timecode(times.database_now()) == began

    found, is_one_step = look()
    while not is_one_step:
        found, is_one_step = look()
    assert (found == "password_and_code") == accepted


def test_check_accepts_no_code_twice_and_none_older_than_the_last(mara):
    phone, _ = equip(mara)
    now, later = phone.code(), phone.code(1)
    assert second_factor.check(mara, f" {later[:3]} {later[3:]} ") == "password_and_code"
    assert second_factor.check(mara, later) is None
    assert second_factor.check(mara, now) is None


def test_confirmation_uses_its_code_up(mara):
    phone = Phone(second_factor.begin(mara))
    code = phone.code()
    second_factor.confirm(mara, code, by=actors.of_user(mara))
    assert second_factor.check(mara, code) is None


def test_recovery_code_works_once_however_it_is_typed(mara):
    _, codes = equip(mara)
    assert len(set(codes)) == 10
    assert all(re.fullmatch("([a-z2-7]{4}-){5}[a-z2-7]{4}", code) for code in codes)
    assert second_factor.check(mara, codes[3].upper().replace("-", " ")) == "password_and_recovery_code"
    assert second_factor.check(mara, codes[3]) is None
    assert len(second_factor.find(mara).recovery_hashes) == 9


@pytest.mark.parametrize("given", ["", "12345", "1234567", "１２３４５６", "x" * 24, "\x00"])
def test_check_refuses_what_is_no_code(mara, given):
    equip(mara)
    assert second_factor.check(mara, given) is None


def test_codes_of_an_unfinished_set_up_prove_nothing(mara):
    phone = Phone(second_factor.begin(mara))
    assert second_factor.find(mara) is None
    assert second_factor.check(mara, phone.code()) is None


def test_two_requests_with_one_code_at_a_time_log_in_once(mara):
    phone, codes = equip(mara)
    for code in (phone.code(), codes[0]):
        clients = [half_way(mara) for _ in range(2)]
        answers = in_parallel(lambda client, code=code: try_code(client, code).status_code, clients)
        assert sorted(answers) == [200, 302]
        assert sorted(is_in(client) for client in clients) == [False, True]


def test_two_uses_of_one_code_at_a_time_accept_it_once(mara):
    """Without the page, whose lock makes requests of a user wait for each other."""
    phone, codes = equip(mara)
    for code in (phone.code(), codes[0]):
        used = in_parallel(lambda given: second_factor.check(mara, given), [code] * 4)
        assert sorted(map(bool, used)) == [False, False, False, True]


# -- log-ins -------------------------------------------------------------------------------------------------------------


def test_log_in_asks_for_the_code_after_the_password(db):
    phone, _ = equip(hire("mara", password=PASSWORD))
    client = Client()
    answer = client.post(f"{LOGIN}?next=/admin/engines/engine/", {"username": "mara", "password": PASSWORD})
    assert answer["Location"] == CODE
    assert "authenticator app" in client.get(CODE).text
    for path in ("/admin/", "/admin/engines/engine/", "/admin/auth/user/", PAGE, "/admin/password_change/", "/admin/search/?s=x"):
        assert client.get(path)["Location"].startswith(LOGIN), path
    assert rows(Action.STAFF_LOGIN) == []
    key = client.session.session_key
    assert try_code(client, phone.code())["Location"] == "/admin/engines/engine/"
    assert is_in(client)
    assert client.session.session_key != key
    assert PENDING not in client.session
    assert rows(Action.STAFF_LOGIN) == [("admin:mara", {"method": "password_and_code"})]
    assert client.get(CODE)["Location"] == LOGIN


def test_log_in_without_a_wanted_page_leads_to_the_overview(db):
    phone, _ = equip(hire("mara", password=PASSWORD))
    client = Client()
    client.post(LOGIN, {"username": "mara", "password": PASSWORD})
    assert try_code(client, phone.code())["Location"] == "/admin/"


def test_log_in_with_a_recovery_code_says_how_many_are_left(mara):
    _, codes = equip(mara)
    client = half_way(mara)
    try_code(client, codes[0])
    assert "Recovery codes left: 9." in client.get("/admin/").text
    assert rows(Action.STAFF_LOGIN) == [("admin:mara", {"method": "password_and_recovery_code"})]
    assert "wrong" in try_code(half_way(mara), codes[0]).text


def test_wrong_code_is_recorded_and_slowed(mara):
    phone, _ = equip(mara)
    client = half_way(mara)
    assert [try_code(client, phone.wrong()).status_code for _ in range(4)] == [200] * 4
    for _ in range(3):
        brakes.failed("mara")  # a longer pause than this test takes
    paused = try_code(client, phone.wrong())
    assert paused.status_code == 429
    assert int(paused["Retry-After"]) >= 1
    assert "Too many failed log-ins" in paused.text
    assert try_code(client, phone.code()).status_code == 429
    assert not is_in(client)
    refusals = rows(Action.STAFF_LOGIN_FAILED)
    assert [(actor, told["rule"], told["user"]) for actor, told in refusals] == [
        ("anonymous", "wrong_code", "mara"), ("anonymous", "paused", "mara")
    ]  # fmt: skip


def test_right_password_does_not_end_the_brakes_of_wrong_codes(db):
    phone, _ = equip(hire("mara", password=PASSWORD))
    client = Client()
    for _ in range(4):
        assert client.post(LOGIN, {"username": "mara", "password": PASSWORD})["Location"] == CODE
        assert try_code(client, phone.wrong()).status_code == 200
    assert client.post(LOGIN, {"username": "mara", "password": PASSWORD}).status_code == 429


def test_many_wrong_codes_at_a_time_are_no_more_than_in_turn(mara):
    phone, _ = equip(mara)
    for _ in range(6):
        brakes.failed("mara")
    for key in valkey.client().scan_iter("*/pause/*"):  # a pause is over; the next failure begins one of 8 s
        valkey.client().delete(key)
    code, clients = phone.wrong(), [half_way(mara) for _ in range(8)]
    answers = in_parallel(lambda client: try_code(client, code).status_code, clients)
    assert sorted(answers) == [200] + [429] * 7


def test_log_in_is_to_be_completed_within_five_minutes(mara):
    phone, _ = equip(mara)
    client = half_way(mara)
    since = (times.database_now() - LONGEST + timedelta(seconds=30)).isoformat()
    note(client, PENDING, {**client.session[PENDING], "since": since})
    assert client.get(CODE).status_code == 200
    note(client, PENDING, {**client.session[PENDING], "since": (times.database_now() - LONGEST).isoformat()})
    assert try_code(client, phone.code())["Location"] == LOGIN
    assert "Log in again" in client.get(LOGIN).text
    assert not is_in(client)


@pytest.mark.parametrize("column", [{"password": USABLE + "-other"}, {"is_active": False}, {"is_staff": False}])
def test_log_in_under_way_ends_when_the_account_changes(mara, column):
    phone, _ = equip(mara)
    client = half_way(mara)
    User.objects.filter(pk=mara.pk).update(**column)
    assert try_code(client, phone.code())["Location"] == LOGIN
    assert rows(Action.STAFF_LOGIN) == []


def test_log_in_under_way_ends_when_the_second_factor_is_removed(mara):
    equip(mara)
    client = half_way(mara)
    second_factor.remove(mara, by=actors.of_user(mara))
    assert client.get(CODE)["Location"] == LOGIN


def test_code_page_without_a_password_leads_to_the_log_in(db):
    assert Client().get(CODE)["Location"] == LOGIN
    assert try_code(Client(), "123456")["Location"] == LOGIN
    assert Client(enforce_csrf_checks=True).post(CODE, {"code": "123456"}).status_code == 403


# -- one's own page ------------------------------------------------------------------------------------------------------


def test_set_up_shows_the_secret_and_after_a_right_code_the_recovery_codes_once(mara):
    client = client_of(mara)
    assert "Set up" in client.get(PAGE).text
    shown = client.post(f"{PAGE}set-up/")
    secret = shown.context["secret"]
    assert secret in shown.text
    assert "<svg" in shown.text
    phone = Phone(secret)
    again = client.post(f"{PAGE}set-up/", {"code": phone.wrong()})
    assert "The code is wrong" in again.text
    assert again.context["secret"] == secret
    assert second_factor.find(mara) is None
    done = client.post(f"{PAGE}set-up/", {"code": phone.code()})
    assert all(code in done.text for code in done.context["codes"])
    assert "no-store" in shown["Cache-Control"]
    assert "no-store" in done["Cache-Control"]
    assert rows() == [("admin:mara", change(before={"second_factor": False}, after={"second_factor": True}))]
    assert client.session[METHOD] == "password_and_code"
    state = client.get(PAGE)
    assert state.context["left"] == 10
    assert secret not in state.text
    assert not any(code in state.text for code in done.context["codes"])
    assert client.get(f"{PAGE}set-up/")["Location"] == PAGE
    client.post(f"{PAGE}set-up/")
    assert "You have a second factor already" in client.get(PAGE).text


def test_set_up_begun_again_has_a_new_secret(mara):
    client = client_of(mara)
    first, second = (Phone(client.post(f"{PAGE}set-up/").context["secret"]) for _ in range(2))
    assert "The code is wrong" in client.post(f"{PAGE}set-up/", {"code": first.code()}).text
    assert "recovery codes" in client.post(f"{PAGE}set-up/", {"code": second.code()}).text


def test_set_up_that_was_never_begun_is_refused(mara):
    client = client_of(mara)
    client.post(f"{PAGE}set-up/", {"code": "123456"})
    assert "Begin again" in client.get(PAGE).text
    for verb in (second_factor.remove, second_factor.renew_recovery_codes):
        with pytest.raises(NotSetUp):
            verb(mara, by=actors.of_user(mara))
    assert rows() == []


def test_verbs_refuse_what_is_set_up_already(mara):
    phone, _ = equip(mara)
    with pytest.raises(AlreadySetUp):
        second_factor.begin(mara)
    with pytest.raises(NotSetUp):
        second_factor.confirm(mara, phone.code(), by=actors.of_user(mara))
    second_factor.remove(mara, by=actors.of_user(mara))
    second_factor.begin(mara)
    with pytest.raises(WrongCode):
        second_factor.confirm(mara, "12345", by=actors.of_user(mara))


def test_new_recovery_codes_replace_the_old(mara):
    _, old = equip(mara)
    client = client_of(mara, "password_and_code")
    assert "stop working" in client.get(f"{PAGE}recovery-codes/").text
    shown = client.post(f"{PAGE}recovery-codes/")
    assert "no-store" in shown["Cache-Control"]
    assert rows()[1:] == [("admin:mara", change(["recovery_codes"]))]
    assert second_factor.check(mara, old[0]) is None
    assert second_factor.check(mara, shown.context["codes"][0])


def test_user_removes_their_own_second_factor(mara):
    equip(mara)
    client = client_of(mara, "password_and_code")
    assert "asks for your password alone" in client.get(f"{PAGE}remove/").text
    assert second_factor.find(mara)
    client.post(f"{PAGE}remove/")
    assert second_factor.find(mara) is None
    assert rows()[1:] == [("admin:mara", change(before={"second_factor": True}, after={"second_factor": False}))]


@pytest.mark.parametrize("path", ["set-up/", "recovery-codes/", "remove/"])
def test_pages_ask_for_the_password_again(mara, path):
    if path != "set-up/":
        equip(mara)
    before = list(SecondFactor.objects.values())
    client = prove(client_of(mara, "password_and_code"), ago=timedelta(minutes=11))
    assert "needs your password once more" in client.post(f"{PAGE}{path}").text
    assert list(SecondFactor.objects.values()) == before


@pytest.mark.parametrize("path", [f"{PAGE}recovery-codes/", f"{PAGE}remove/", "/admin/", "/admin/logout/"])
def test_session_of_the_password_alone_ends_once_there_is_a_second_factor(mara, path):
    client = client_of(mara)
    equip(mara)
    before = list(SecondFactor.objects.values())
    assert client.post(path)["Location"] == "/admin/login/"
    assert "since you logged in. Log in again." in client.get("/admin/login/").text
    assert client.get("/admin/")["Location"].startswith("/admin/login/?next=")
    assert list(SecondFactor.objects.values()) == before


def test_users_of_single_sign_on_are_told_of_their_provider(db):
    nora = hire("nora")
    client = client_of(nora, "provider")
    state = client.get(PAGE).text
    assert "through your organisation" in state
    assert "/admin/password_change/" not in state
    assert client.post(f"{PAGE}set-up/")["Location"] == PAGE
    assert not SecondFactor.objects.exists()


def test_account_menu_leads_to_the_page(mara):
    page = client_of(mara).get("/admin/").text
    assert f'href="{PAGE}"' in page
    assert 'href="/admin/password_change/"' in page


# -- where it is required ------------------------------------------------------------------------------------------------


@pytest.fixture
def required(settings):
    settings.ENV = settings.ENV.model_copy(update={"staff_second_factor": "required"})


def paths(patterns, before="/admin/"):
    """The paths of the admin, with something in place of their parameters."""
    values = {"uuid": str(uuid.uuid4()), "int": "1"}
    for entry in patterns:
        if not isinstance(entry.pattern, RoutePattern):
            continue
        route = before + re.sub(r"<(?:(\w+):)?\w+>", lambda found: values.get(found[1], "1"), str(entry.pattern))
        if isinstance(entry, URLPattern):
            yield route
        else:
            yield from paths(entry.url_patterns, route)


def test_required_every_page_leads_to_the_set_up(mara, required):
    client = client_of(mara)
    free = {LOGIN, CODE, "/admin/logout/", "/admin/password_change/", "/admin/password_change/done/", PAGE, f"{PAGE}set-up/"}
    free |= {"/admin/provider/", "/admin/provider/callback/"}
    found = {*paths(admin.site.get_urls()), "/admin/auth/", "/admin/no-such-page/"}
    assert len(found) > 40
    assert free < found
    for path in sorted(found - free):
        for answer in (client.get(path), client.post(path)):
            assert (answer.status_code, answer.headers.get("Location")) == (302, PAGE), path
    assert "A second factor is required here" in client.get(PAGE).text
    assert client.get("/admin/password_change/").status_code == 200
    phone = Phone(client.post(f"{PAGE}set-up/").context["secret"])
    client.post(f"{PAGE}set-up/", {"code": phone.code()})
    assert is_in(client)
    client.post(f"{PAGE}remove/")
    assert "you cannot remove yours" in client.get(PAGE).text
    assert second_factor.find(mara)
    assert client.post("/admin/logout/")["Location"] == LOGIN


@pytest.mark.parametrize("method", ["password_and_code", "password_and_recovery_code", "provider"])
def test_required_other_sessions_are_not_concerned(mara, required, method):
    assert is_in(client_of(mara, method))


def test_required_session_from_before_the_set_up_has_to_log_in_again(mara, required):
    client = client_of(mara)
    equip(mara)
    assert client.post(f"{PAGE}set-up/")["Location"] == "/admin/login/"


# -- removal by others ---------------------------------------------------------------------------------------------------


def path_of(user):
    return f"/admin/auth/user/{user.pk}/second-factor/"


def test_superuser_removes_the_second_factor_of_another_user(mara):
    equip(mara)
    client = client_of(hire("root", superuser=True))
    assert path_of(mara) in client.get(f"/admin/auth/user/{mara.pk}/change/").text
    assert "this user who asked you" in client.get(path_of(mara)).text
    assert second_factor.find(mara)
    assert client.post(path_of(mara))["Location"] == f"/admin/auth/user/{mara.pk}/change/"
    assert second_factor.find(mara) is None
    assert rows()[1:] == [("admin:root", change(before={"second_factor": True}, after={"second_factor": False}))]
    client.post(path_of(mara))
    page = client.get(f"/admin/auth/user/{mara.pk}/change/").text
    assert "mara has no second factor" in page
    assert path_of(mara) not in page
    assert client.get("/admin/auth/user/999999/second-factor/").status_code == 404


def test_superuser_is_asked_for_the_password_again(mara):
    equip(mara)
    client = prove(client_of(hire("root", superuser=True)), ago=timedelta(minutes=11))
    assert "needs your password once more" in client.post(path_of(mara)).text
    assert second_factor.find(mara)


def test_superuser_removes_their_own_on_their_own_page(db):
    root = hire("root", superuser=True)
    equip(root)
    assert client_of(root, "password_and_code").post(path_of(root))["Location"] == f"{PAGE}remove/"
    assert second_factor.find(root)


def test_others_may_not_remove_it(mara):
    equip(mara)
    client = client_of(hire("ina", "auth.view_user", "auth.change_user"))
    page = client.get(f"/admin/auth/user/{mara.pk}/change/").text
    assert "Second factor" in page
    assert path_of(mara) not in page
    for answer in (
        client.get(path_of(mara)),
        client.post(path_of(mara)),
        client_of(mara, "password_and_code").post(path_of(mara)),
    ):
        assert answer.status_code == 403
    assert second_factor.find(mara)


def test_list_of_users_shows_who_has_one_in_the_same_number_of_queries(mara):
    client = client_of(hire("root", superuser=True))

    def look():
        with CaptureQueriesContext(connection) as queries:
            cells = re.findall(r"field-has_second_factor.*?</td>", client.get("/admin/auth/user/").text, re.DOTALL)
        return [("True" in cell or "check" in cell) for cell in cells], len(queries)

    look()
    (_, before), _ = look(), equip(mara)
    second_factor.begin(hire("ina"))
    found, after = look()
    assert found == [False, True, False]  # ina, whose set-up is unfinished; mara; root
    assert after == before


def test_command_removes_it_as_the_system(mara):
    equip(mara)
    out = io.StringIO()
    call_command("remove_second_factor", "mara", stdout=out)
    assert "mara has no second factor any more" in out.getvalue()
    told = change(before={"second_factor": True}, after={"second_factor": False}, cause="remove_second_factor")
    assert rows()[1:] == [("system", told)]
    with pytest.raises(CommandError, match="mara has no second factor"):
        call_command("remove_second_factor", "mara")
    with pytest.raises(CommandError, match="No user has the name nobody"):
        call_command("remove_second_factor", "nobody")


# -- secrets -------------------------------------------------------------------------------------------------------------


def everything(superuser):
    """All rows of all tables, and all of Valkey, as text."""
    tables = superuser.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    for (table,) in tables.fetchall():
        for (row,) in superuser.execute(f'SELECT it::text FROM "{table}" it').fetchall():
            yield row
    for key in valkey.client().scan_iter("*"):
        yield f"{key!r} {valkey.client().dump(key)!r}"


def test_nothing_at_rest_or_in_the_log_has_a_secret_or_a_code(mara, superuser, caplog):
    client = client_of(mara)
    secret = client.post(f"{PAGE}set-up/").context["secret"]
    phone = Phone(secret)
    used = [phone.code(), phone.wrong()]
    codes = client.post(f"{PAGE}set-up/", {"code": used[0]}).context["codes"]
    half = half_way(mara)
    try_code(half, used[1])
    try_code(half, "abcd-efgh-wrong")
    try_code(half, codes[0])
    fresh = client.post(f"{PAGE}recovery-codes/").context["codes"]
    logged = [str(record.msg) for record in caplog.records]
    kept = "\n".join([*everything(superuser), *logged])
    assert "second_factor" in kept
    assert "staff_login_failed" in kept
    for code in (secret, *codes, *fresh, "abcd-efgh-wrong"):
        assert code not in kept
        assert code.replace("-", "") not in kept
    for code in used:
        assert not re.search(rf"(?<![\w.]){code}(?!\w)", kept), code


def test_rotation_of_the_master_key_reencrypts_secrets(mara, settings):
    phone, codes = equip(mara)
    second_factor.begin(hire("ina"))
    old, new = settings.ENV.master_key, Fernet.generate_key().decode()
    settings.ENV = settings.ENV.model_copy(update={"master_key": f"{new},{old}"})
    out = io.StringIO()
    call_command("rotate_master_key", stdout=out)
    assert "staff_secondfactor.secret_ciphertext: 2 read, 2 re-encrypted" in out.getvalue().splitlines()
    settings.ENV = settings.ENV.model_copy(update={"master_key": new})
    assert all(crypto.is_current(token) for token in SecondFactor.objects.values_list("secret_ciphertext", flat=True))
    assert second_factor.check(mara, phone.code()) == "password_and_code"
    assert second_factor.check(mara, codes[0]) == "password_and_recovery_code"
