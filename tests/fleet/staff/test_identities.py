"""Users of single sign-on: made, found, linked and refused, and their groups."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.auth.models import Group, User
from django.db import IntegrityError, connections
from django.test import Client

from fleet.staff.models import Identity
from tests.fleet.staff.single_sign_on import go, is_logged_in, names, rows, told
from tests.staff import hire, log_in


def test_first_log_in_makes_a_user_with_the_mapped_groups(provider, client):
    answer = go(client)
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")
    nina = User.objects.get(username="nina")
    assert (nina.is_active, nina.is_staff, nina.is_superuser, nina.has_usable_password()) == (True, True, False, False)
    assert (nina.email, names(nina)) == ("nina@example.com", ["operators"])
    assert (nina.identity.issuer, nina.identity.subject) == (provider.issuer, "sub-of-nina")
    assert is_logged_in(client)
    made, linked = rows("staff_change")
    assert {row.actor for row in (made, linked)} == {"system"}
    assert {row.metadata["cause"] for row in (made, linked)} == {"provider"}
    assert (made.metadata["change"], made.metadata["after"]["groups"]) == ("created", ["operators"])
    assert linked.metadata["after"] == {"issuer": provider.issuer, "subject": "sub-of-nina"}
    (login,) = rows("staff_login")
    assert (login.actor, login.metadata) == ("admin:nina", {"method": "provider"})


def test_next_log_in_changes_the_groups_and_records_it(provider, client):
    go(client)
    nina = User.objects.get()
    nina.groups.add(Group.objects.get(name="local"))
    provider.person = {**provider.person, "groups": ["security", "unmapped"], "preferred_username": "renamed"}
    go(Client())
    assert User.objects.count() == 1
    assert names(nina) == ["auditors"]
    change = rows("staff_change")[-1]
    assert change.metadata["before"] == {"groups": ["local", "operators"]}
    assert change.metadata["after"] == {"groups": ["auditors"]}
    assert (change.actor, change.metadata["cause"], change.metadata["user"]) == ("system", "provider", "nina")


def test_first_log_ins_at_once_make_one_user(provider):
    def log_in_once(client):
        try:
            return go(client).status_code
        finally:
            connections.close_all()

    with ThreadPoolExecutor() as threads:
        statuses = list(threads.map(log_in_once, [Client() for _ in range(3)]))
    assert 302 in statuses
    assert set(statuses) <= {302, 403}
    assert (User.objects.count(), Identity.objects.count()) == (1, 1)
    assert len(rows("staff_login")) == statuses.count(302)


def test_next_log_in_with_the_same_groups_records_no_change(provider, client):
    go(client)
    before = len(rows("staff_change"))
    go(Client())
    assert len(rows("staff_change")) == before
    assert len(rows("staff_login")) == 2


def test_person_in_no_mapped_group_is_refused_and_loses_all_groups(provider, client, caplog):
    go(client)
    nina = User.objects.get()
    for groups in ([], ["unmapped"], ["guests"], None, "elsewhere", 7, [["platform"]]):
        nina.groups.set(Group.objects.filter(name="operators"))
        provider.claims = {"groups": groups}
        stranger = Client()
        assert "none of the provider&#x27;s groups" in told(go(stranger), 403)
        assert names(nina) == []
        assert not is_logged_in(stranger)
    assert rows("staff_login_failed")[0].metadata == {"rule": "provider_refused", "user": "nina"}
    assert any("provider_group_missing" in str(record.msg) for record in caplog.records)


def test_unknown_person_in_no_mapped_group_becomes_no_user(provider, client):
    provider.claims = {"groups": ["unmapped"]}
    told(go(client), 403)
    assert not User.objects.exists()


def test_groups_may_be_a_single_name_in_another_claim(provider, settings, client):
    settings.ENV = settings.ENV.model_copy(update={"oidc_groups_claim": "roles"})
    provider.claims = {"roles": "security", "groups": None}
    go(client)
    assert names(User.objects.get()) == ["auditors"]


@pytest.mark.parametrize("name", ["root", "ROOT"])
def test_person_with_the_name_of_a_user_gets_nothing_of_it(provider, client, name):
    root = hire("root", superuser=True)
    provider.claims = {"preferred_username": name, "email": root.email}
    text = told(go(client), 403)
    assert "a superuser can link the account" in text
    assert "sub-of-nina" in text
    assert not Identity.objects.exists()
    assert not is_logged_in(client)
    assert [row.metadata["rule"] for row in rows("staff_login_failed")] == ["provider_refused"]


@pytest.mark.parametrize(
    "claims",
    [
        {"preferred_username": None, "email": None},
        {"preferred_username": "two words"},
        {"preferred_username": "nina\u3164"},
        {"preferred_username": "x" * 151},
        {"preferred_username": "nul\x00"},
        {"preferred_username": ["nina"]},
    ],
)
def test_person_without_a_usable_name_is_refused(provider, client, claims):
    provider.claims = claims
    assert "no name that a user may have" in told(go(client), 403)
    assert not User.objects.exists()


def test_address_of_email_is_the_name_where_there_is_no_other(provider, client):
    provider.claims = {"preferred_username": None}
    go(client)
    assert User.objects.get().username == "nina@example.com"


def test_deactivated_user_is_refused(provider, client):
    go(client)
    User.objects.update(is_active=False)
    assert "deactivated" in told(go(Client()), 403)
    User.objects.update(is_active=True, is_staff=False)
    assert "not an account of staff" in told(go(Client()), 403)
    assert [row.metadata for row in rows("staff_login_failed")] == [
        {"rule": "provider_refused", "user": "nina"},
        {"rule": "not_staff", "user": "nina"},
    ]


# -- the link ------------------------------------------------------------------------------------------------------------


def form_of(client, user):
    """What the browser would send of the user's page."""
    fields = client.get(f"/admin/auth/user/{user.pk}/change/").context["adminform"].form
    return {name: fields[name].value() for name in fields.fields if fields[name].value() not in (None, False)}


def test_superuser_links_a_user_and_the_person_logs_in_as_that_user(provider, client):
    local = hire("nina", password="a long password of nina")
    root = log_in("root", superuser=True)
    page = f"/admin/auth/user/{local.pk}/change/"
    assert root.post(page, {**form_of(root, local), "subject": "sub-of-nina"}).status_code == 302
    (change,) = rows("staff_change")
    assert (change.actor, change.metadata["user"], change.metadata["fields"]) == ("admin:root", "nina", ["issuer", "subject"])
    assert change.metadata["before"] == {"issuer": "", "subject": ""}
    assert change.metadata["after"] == {"issuer": provider.issuer, "subject": "sub-of-nina"}
    assert go(client)["Location"] == "/admin/"
    assert rows("staff_login")[-1].actor == "admin:nina"
    local.refresh_from_db()
    assert (local.has_usable_password(), local.is_superuser, names(local)) == (True, False, ["operators"])
    assert root.post(page, {**form_of(root, local), "subject": ""}).status_code == 302
    assert rows("staff_change")[-1].metadata["after"] == {"issuer": "", "subject": ""}
    told(go(Client()), 403)


def test_subject_belongs_to_one_user(provider, client):
    go(client)
    other, root = hire("other"), log_in("root", superuser=True)
    answer = root.post(f"/admin/auth/user/{other.pk}/change/", {**form_of(root, other), "subject": "sub-of-nina"})
    assert "Another user has this subject." in answer.text
    with pytest.raises(IntegrityError):
        Identity.objects.create(user=other, issuer=provider.issuer, subject="sub-of-nina")


def test_nobody_but_a_superuser_links(provider):
    other, manager = hire("other"), log_in("manager", "auth.change_user", "auth.view_user")
    page = f"/admin/auth/user/{other.pk}/change/"
    assert 'name="subject"' not in manager.get(page).text
    assert manager.post(page, {**form_of(manager, other), "first_name": "O", "subject": "taken-over"}).status_code == 302
    other.refresh_from_db()
    assert other.first_name == "O"
    assert not Identity.objects.exists()


def test_linked_superuser_keeps_all_flags(provider, client):
    root = hire("root", superuser=True)
    Identity.objects.create(user=root, issuer=provider.issuer, subject="sub-of-nina")
    go(client)
    root.refresh_from_db()
    assert (root.is_superuser, names(root)) == (True, ["operators"])


def test_same_subject_of_another_issuer_is_somebody_else(provider, client):
    other = hire("other")
    Identity.objects.create(user=other, issuer="https://before.example.com", subject="sub-of-nina")
    go(client)
    assert User.objects.get(username="nina").identity.issuer == provider.issuer
    assert names(other) == []
