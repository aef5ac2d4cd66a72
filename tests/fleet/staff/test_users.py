"""Users and groups in the admin: nobody grants what they do not have, names last, and every change is a row."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import IntegrityError, connection, transaction

from audit.models import AuditRow
from fleet.staff import accounts, record
from tests import waiting
from tests.conftest import as_superuser
from tests.staff import hire, log_in, prove

ADD, CHANGE, VIEW = "auth.add_user", "auth.change_user", "auth.view_user"
GROUPS = ("auth.view_group", "auth.add_group", "auth.change_group", "auth.delete_group")
PASSWORD = "correct horse battery staple"


def page_of(holder, what="change"):
    return f"/admin/auth/{holder._meta.model_name}/{holder.pk}/{what}/"


def form_of(user, **changes):
    """The fields that the page of a user sends."""
    dates = {"date_joined_0": user.date_joined.date(), "date_joined_1": user.date_joined.time()}
    flags = {name: "on" for name in ("is_active", "is_staff", "is_superuser") if getattr(user, name)}
    given = {"user_permissions": [p.pk for p in user.user_permissions.all()], "groups": [g.pk for g in user.groups.all()]}
    sent = {"username": user.username, "first_name": user.first_name, "last_name": user.last_name, "email": user.email}
    return {name: value for name, value in {**sent, **dates, **flags, **given, **changes}.items() if value is not None}


def state_of(user):
    user = User.objects.get(pk=user.pk)
    given = {
        "permissions": sorted(user.user_permissions.values_list("pk", flat=True)),
        "groups": sorted(user.groups.values_list("pk")),
    }
    return {name: getattr(user, name) for name in ("username", "password", "is_active", "is_staff", "is_superuser")} | given


def changes():
    """The rows of changes of staff, without those of the test's own making."""
    return list(AuditRow.objects.filter(action="staff_change").order_by("id"))


# -- nobody grants what they do not have -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "taken",
    [
        {"is_superuser": "on"},
        {"is_staff": None},
        {"user_permissions": "all"},
        {"groups": "all"},
        {"username": "root"},
    ],
)
def test_change_user_gives_oneself_nothing(db, taken):
    client = log_in("mallory", CHANGE, VIEW)
    Group.objects.create(name="keyholders").permissions.set(Permission.objects.all())
    everything = {"user_permissions": list(Permission.objects.values_list("pk", flat=True)), "groups": [Group.objects.get().pk]}
    mallory = User.objects.get()
    before = state_of(mallory)
    sent = {name: everything[name] if value == "all" else value for name, value in taken.items()}
    response = client.post(page_of(mallory), form_of(mallory, **sent, first_name="Mal"))
    assert response.status_code == 302
    assert state_of(mallory) == before
    [row] = changes()
    assert (row.actor, row.metadata["fields"]) == ("admin:mallory", ["first_name"])


@pytest.mark.parametrize("path", ["change", "password"])
def test_change_user_does_not_touch_a_superuser(db, path):
    client = log_in("mallory", CHANGE, VIEW)
    root = hire("root", superuser=True, password=None)
    before = state_of(root)
    sent = {**form_of(root, is_active=None), "password1": PASSWORD, "password2": PASSWORD, "usable_password": "true"}
    assert client.post(page_of(root, path), {**sent, "set-password": "1"}).status_code == 403
    assert state_of(root) == before
    assert not changes()


def test_change_user_sets_no_password_and_reaches_nobody_with_more(db):
    client = log_in("mallory", CHANGE, VIEW)
    weaker = hire("weaker")
    stronger = hire("stronger", "engines.reveal_engine_key")
    gone = hire("gone", "policy.operate_adminkey")
    User.objects.filter(pk=gone.pk).update(is_active=False)
    for user in (weaker, stronger, User.objects.get(username="mallory")):
        sent = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true", "set-password": "1"}
        assert client.post(page_of(user, "password"), sent).status_code == 403
    for user in (stronger, gone):
        assert client.post(page_of(user), form_of(user, is_active=None if user.is_active else "on")).status_code == 403
    assert client.post(page_of(weaker), form_of(weaker, is_active=None)).status_code == 302
    assert not User.objects.get(username="weaker").is_active
    [row] = changes()
    assert (row.metadata["user"], row.metadata["before"], row.metadata["after"]) == (
        "weaker",
        {"is_active": True},
        {"is_active": False},
    )


def test_only_superusers_make_users_and_change_groups(db):
    client = log_in("mallory", CHANGE, ADD, VIEW, "auth.delete_user", *GROUPS)
    group = Group.objects.create(name="mine")
    User.objects.get().groups.add(group)
    everything = list(Permission.objects.values_list("pk", flat=True))
    for path, sent in (
        ("/admin/auth/user/add/", {"username": "puppet", "password1": PASSWORD, "password2": PASSWORD}),
        ("/admin/auth/group/add/", {"name": "keyholders", "permissions": everything}),
        (page_of(group), {"name": "mine", "permissions": everything}),
        (page_of(group, "delete"), {"post": "yes"}),
        (page_of(User.objects.get(), "delete"), {"post": "yes"}),
    ):
        assert client.post(path, sent).status_code == 403, path
    assert client.get(page_of(group)).status_code == 200
    assert (User.objects.count(), Group.objects.count(), group.permissions.count()) == (1, 1, 0)
    assert not changes()


def test_list_offers_no_action_that_deletes(db):
    client = log_in("root", superuser=True)
    group = Group.objects.create(name="mine")
    for model, chosen in (("user", User.objects.get()), ("group", group)):
        client.post(f"/admin/auth/{model}/", {"action": "delete_selected", "_selected_action": [chosen.pk], "post": "yes"})
    assert (User.objects.count(), Group.objects.count()) == (1, 1)


def test_page_of_a_user_shows_no_hash_to_whoever_only_looks(db):
    client = log_in("rita", VIEW)
    nina = hire("nina", password=PASSWORD)
    for path in (page_of(nina), "/admin/auth/user/"):
        page = client.get(path).text
        assert "nina" in page
        assert "pbkdf2" not in page
    for lookup in ("password__startswith=pbkdf2", "email__regex=(", "last_login__year=0"):
        assert client.get(f"/admin/auth/user/?{lookup}").status_code == 400
    for lookup in ("is_staff__exact=1", "groups__id__exact=1"):
        assert client.get(f"/admin/auth/user/?{lookup}").status_code == 200


# -- names last --------------------------------------------------------------------------------------------------------


def test_superuser_renames_and_deletes_nobody(db):
    client = log_in("root", superuser=True)
    nina = hire("nina")
    assert client.post(page_of(nina), form_of(nina, username="rita")).status_code == 302
    assert User.objects.get(pk=nina.pk).username == "nina"
    assert client.post(page_of(nina, "delete"), {"post": "yes"}).status_code == 403
    assert User.objects.filter(pk=nina.pk).exists()


@pytest.mark.parametrize("change", [lambda users: users.update(username="rita"), lambda users: users.delete()])
def test_database_refuses_to_rename_or_delete_a_user(db, change):
    nina = hire("nina")
    with pytest.raises(IntegrityError, match="deactivate the user"), transaction.atomic():
        change(User.objects.filter(pk=nina.pk))
    assert User.objects.get().username == "nina"


@pytest.mark.parametrize(
    ("username", "words"),
    [
        ("Nina", "already exists"),
        ("nina\u3164", "do not show"),
        ("nina", "already exists"),
        ("\uff2eina", "already exists"),
        ("n\u0456na", "mixes letters"),
    ],
)
def test_new_name_is_told_from_all_others(db, username, words):
    client = log_in("root", superuser=True)
    hire("nina")
    assert "nobody can change it later" in client.get("/admin/auth/user/add/").text
    response = client.post("/admin/auth/user/add/", {"username": username, "password1": PASSWORD, "password2": PASSWORD})
    assert words in response.text
    assert User.objects.count() == 2


def test_deactivated_user_is_out_at_once_and_for_good(db):
    client, root = log_in("nina"), log_in("root", superuser=True)
    nina = User.objects.get(username="nina")
    assert client.get("/admin/").status_code == 200
    root.post(page_of(nina), form_of(nina, is_active=None))
    assert client.get("/admin/")["Location"].startswith("/admin/login/")
    nina.refresh_from_db()
    root.post(page_of(nina), form_of(nina, is_active="on"))
    assert client.get("/admin/")["Location"].startswith("/admin/login/")
    assert root.get("/admin/").status_code == 200


def test_last_superuser_stays_one(db):
    client = log_in("root", superuser=True)
    root = User.objects.get()
    root.set_password(PASSWORD)
    root.save()
    client.force_login(root)
    prove(client)
    assert client.post(page_of(root, "password"), {"usable_password": "false", "unset-password": "1"}).status_code == 302
    assert User.objects.get().has_usable_password()
    for flag in accounts.FLAGS_OF_SUPERUSER:
        response = client.post(page_of(root), form_of(root, **{flag: None}))
        assert "the last active superuser" in response.text
    assert not changes()
    hire("second", superuser=True)
    assert client.post(page_of(root), form_of(root, is_superuser=None)).status_code == 302
    assert not User.objects.get(pk=root.pk).is_superuser


def test_not_even_the_owner_empties_the_table_of_users(db, superuser):
    hire("nina")
    with pytest.raises(psycopg.errors.CheckViolation, match="deactivate the user"):
        superuser.execute("TRUNCATE auth_user CASCADE")


# -- changes at the same moment ----------------------------------------------------------------------------------------


def meanwhile(user, change, call):
    """Lock the user's row, make `change` and commit it while the request `call` waits for the row; returns the answer."""
    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            record.snapshot(user)
            change()
            answer = pool.submit(call)
            waiting.until(someone_waits, 10, "the request waits for the row")
        return answer.result(10)


def someone_waits():
    with as_superuser() as looking:
        found = looking.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()
    return found[0] > 0


def poster(client, path, sent):
    """Post from another thread, on its own connection."""

    def post():
        try:
            return client.post(path, sent)
        finally:
            connection.close()

    return post


def test_page_writes_no_stale_value_over_the_change_of_another(db):
    client = log_in("root", superuser=True)
    nina = hire("nina")
    post = poster(client, page_of(nina), form_of(nina, first_name="Nina"))
    answer = meanwhile(nina, lambda: User.objects.filter(pk=nina.pk).update(password="!reset"), post)
    nina.refresh_from_db()
    assert (answer.status_code, nina.password, nina.first_name) == (302, "!reset", "Nina")


@pytest.mark.parametrize("flag", accounts.FLAGS_OF_SUPERUSER)
def test_superuser_who_was_demoted_meanwhile_changes_nothing(db, flag):
    client = log_in("mallory", superuser=True)
    puppet = hire("puppet")
    post = poster(client, page_of(puppet), form_of(puppet, is_superuser="on"))
    answer = meanwhile(puppet, lambda: User.objects.filter(username="mallory").update(**{flag: False}), post)
    assert answer.status_code == 403
    assert not User.objects.get(pk=puppet.pk).is_superuser
    assert not changes()


# -- every change is a row ---------------------------------------------------------------------------------------------


def test_row_of_a_change_says_who_whom_and_what(db):
    client = log_in("root", superuser=True)
    nina = hire("nina")
    group = Group.objects.create(name="night shift")
    sent = form_of(nina, email="nina@example.com", is_staff=None, groups=[group.pk], user_permissions=[])
    client.post(page_of(nina), sent, REMOTE_ADDR="192.0.2.7")
    [row] = changes()
    assert (row.actor, str(row.client_ip)) == ("admin:root", "192.0.2.7")
    views = ["audit.view_auditrow", "engines.view_engine", "engines.view_operation", "policy.view_product"]
    assert row.metadata == {
        "user": "nina",
        "change": "changed",
        "fields": ["email", "is_staff", "groups", "user_permissions"],
        "before": {"email": "", "is_staff": True, "groups": [], "user_permissions": views},
        "after": {"email": "nina@example.com", "is_staff": False, "groups": ["night shift"], "user_permissions": []},
    }
    page = client.get(f"/admin/audit/auditrow/{row.pk}/change/").text
    assert "is staff: yes" in page
    assert "night shift" in page
    client.post(page_of(nina), {**sent})
    assert len(changes()) == 1


def test_row_of_a_password_has_no_password(db):
    client = log_in("root", superuser=True)
    client.post("/admin/auth/user/add/", {"username": "nina", "password1": PASSWORD, "password2": PASSWORD})
    nina = User.objects.get(username="nina")
    sent = {"password1": PASSWORD + "!", "password2": PASSWORD + "!", "usable_password": "true", "set-password": "1"}
    assert client.post(page_of(nina, "password"), sent).status_code == 302
    made, changed = changes()
    assert (made.metadata["change"], "password" in made.metadata["fields"]) == ("created", True)
    assert changed.metadata == {"user": "nina", "change": "changed", "fields": ["password"]}
    for row in (made, changed):
        assert "password" not in {**row.metadata.get("before", {}), **row.metadata.get("after", {})}
        assert "horse" not in str(row.metadata)
        assert "pbkdf2" not in str(row.metadata)


def test_rows_of_a_group(db):
    client = log_in("root", superuser=True)
    reveal = Permission.objects.get(codename="reveal_engine_key")
    client.post("/admin/auth/group/add/", {"name": "night shift", "permissions": [reveal.pk]})
    group = Group.objects.get()
    client.post(page_of(group), {"name": "day shift", "permissions": []})
    hire("nina").groups.add(group)
    client.post(page_of(group, "delete"), {"post": "yes"})
    told = [(row.metadata["group"], row.metadata["change"], row.metadata.get("after")) for row in changes()]
    assert told == [
        ("night shift", "created", {"name": "night shift", "permissions": ["engines.reveal_engine_key"]}),
        ("day shift", "changed", {"name": "day shift", "permissions": []}),
        ("day shift", "removed", None),
    ]
    assert changes()[2].metadata["before"] == {"name": "day shift", "permissions": [], "members": ["nina"]}


def test_page_offers_the_permissions_that_pages_ask_for(db):
    client = log_in("root", superuser=True)
    nina, group = hire("nina"), Group.objects.create(name="mine")
    for holder in (nina, group):
        page = client.get(page_of(holder)).text
        assert "Can destroy engines" in page
        assert "Can add log entry" not in page
        assert "Can delete user" not in page


def test_change_that_cannot_be_recorded_is_not_made(db, superuser):
    client = log_in("root", superuser=True, raise_request_exception=False)
    nina = hire("nina")
    group = Group.objects.create(name="mine")
    before = state_of(nina)
    superuser.execute("DELETE FROM audit_action WHERE action = 'staff_change'")
    try:
        sent = {"password1": PASSWORD, "password2": PASSWORD, "usable_password": "true", "set-password": "1"}
        assert client.post(page_of(nina), form_of(nina, is_superuser="on")).status_code == 500
        assert client.post(page_of(nina, "password"), sent).status_code == 500
        assert client.post(page_of(group, "delete"), {"post": "yes"}).status_code == 500
        assert client.post("/admin/auth/group/add/", {"name": "other"}).status_code == 500
    finally:
        superuser.execute("INSERT INTO audit_action VALUES ('staff_change', 'standard')")
    assert state_of(nina) == before
    assert [found.name for found in Group.objects.all()] == ["mine"]


def test_change_asks_for_the_password_once_more_and_keeps_the_form(db):
    client = log_in("root", superuser=True)
    session = client.session
    del session["confirmed_at"]
    session.save()
    nina = hire("nina")
    response = client.post(page_of(nina), form_of(nina, last_name="Ness"))
    assert "Confirm that it is you" in response.text
    assert '<input type="hidden" name="last_name" value="Ness">' in response.text
    assert not changes()
    prove(client)
    client.post(page_of(nina), form_of(nina, last_name="Ness"))
    assert changes()[0].metadata["after"] == {"last_name": "Ness"}
