"""The four roles: groups that each `migrate` brings to what the table in code says, with a row for each change."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django.db import connections

from audit.models import AuditRow
from fleet.staff import roles
from tests.staff import hire, log_in

OURS = ("audit", "policy", "engines", "fleet", "jobs", "staff")
"""The apps with models of ours."""


def migrate(*arguments):
    call_command("migrate", *arguments, verbosity=0)


def named(permissions):
    return {f"{one.content_type.app_label}.{one.codename}" for one in permissions.select_related("content_type")}


def held():
    """What each group may do."""
    return {group.name: named(group.permissions) for group in Group.objects.all()}


def table():
    """What each role may do, by the table."""
    return {role: {line.permission for line in roles.TABLE if role in line.roles} for role in roles.NAMES}


def rows():
    return list(AuditRow.objects.order_by("id").values_list("action", "actor", "metadata"))


# -- migrate -----------------------------------------------------------------------------------------------------------


def test_migrate_makes_the_groups_as_the_table_says(db):
    migrate()
    assert held() == table()
    assert [(action, actor) for action, actor, _ in rows()] == [("staff_change", "system")] * 4
    for role, (_, _, metadata) in zip(roles.NAMES, rows(), strict=True):
        after = {"name": role, "permissions": sorted(table()[role])}
        told = {"group": role, "change": "created", "fields": ["name", "permissions"], "after": after, "cause": "roles"}
        assert metadata == told


def test_migrate_brings_a_changed_group_back_with_its_row(db):
    roles.bring()
    viewer, before = Group.objects.get(name="viewer"), rows()
    viewer.permissions.remove(Permission.objects.get(codename="view_engine"))
    viewer.permissions.add(Permission.objects.get(codename="destroy_engine"))
    changed = sorted(named(viewer.permissions))
    migrate()
    assert held() == table()
    assert rows()[len(before) :] == [
        (
            "staff_change",
            "system",
            {
                "group": "viewer",
                "change": "changed",
                "fields": ["permissions"],
                "before": {"permissions": changed},
                "after": {"permissions": sorted(table()["viewer"])},
                "cause": "roles",
            },
        )
    ]


def test_migrate_writes_nothing_when_all_groups_are_as_the_table_says(db):
    migrate()
    before = rows()
    migrate()
    assert rows() == before


def test_migrate_leaves_members_and_other_groups(db):
    roles.bring()
    Group.objects.create(name="night shift").permissions.add(Permission.objects.get(codename="operate_engine"))
    hire("rita").groups.add(Group.objects.get(name="viewer"))
    migrate()
    assert held() == {**table(), "night shift": {"engines.operate_engine"}}
    assert [user.username for user in Group.objects.get(name="viewer").user_set.all()] == ["rita"]


@pytest.mark.parametrize("option", ["--plan", "--check"])
def test_migrate_makes_no_group_when_it_only_looks(db, option):
    migrate(option)
    assert held() == {}


def test_migrate_to_an_earlier_state_makes_no_group(db):
    try:
        migrate("staff", "zero")
        assert held() == {}
        assert rows() == []
    finally:
        migrate()
    assert held() == table()


def test_migrate_makes_what_permissions_there_are_and_adds_the_others_later(db):
    """A permission of the table may be missing, where its migration was applied without the permissions being made."""
    gone = Permission.objects.get(codename="destroy_engine")
    Permission.objects.filter(pk=gone.pk).delete()
    roles.bring()
    assert held()["operator"] == table()["operator"] - {"engines.destroy_engine"}
    migrate()  # which makes the permission, too
    assert held() == table()


def test_migrate_twice_at_once_makes_each_group_once(db):
    def run(_):
        try:
            migrate()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert held() == table()
    assert len(rows()) == len(roles.NAMES)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_table_names_permissions_that_exist_each_once(db):
    names = [line.permission for line in roles.TABLE]
    assert len(names) == len(set(names))
    assert set(names) <= named(Permission.objects.all())


def test_table_has_every_permission_of_our_models(db):
    assert {config.label for config in apps.get_app_configs() if config.name.split(".")[0] in OURS} == set(OURS)
    defined = named(Permission.objects.filter(content_type__app_label__in=OURS))
    assert {line.permission for line in roles.TABLE if not line.permission.startswith("auth.")} == defined


def test_table_gives_each_role_what_its_name_says():
    may = table()
    looking = {name for name in may["admin"] if name.split(".")[1].startswith("view_")}
    assert may["auditor"] == looking
    assert may["viewer"] == {name for name in looking if not name.startswith("auth.") and name != "policy.view_adminkey"}
    acting = {"engines.operate_engine", "engines.rotate_engine_key", "engines.destroy_engine", "policy.suspend_product"}
    acting |= {"engines.adopt_unregisteredengine", "engines.forget_unregisteredengine"}
    assert may["operator"] == may["viewer"] | acting
    assert may["admin"] == {line.permission for line in roles.TABLE}


# -- the admin ---------------------------------------------------------------------------------------------------------


def test_superuser_changes_no_group_of_a_role(db):
    roles.bring()
    client, before = log_in("root", superuser=True), rows()
    for group in Group.objects.all():
        place = f"/admin/auth/group/{group.pk}"
        assert client.get(f"{place}/change/").status_code == 200
        assert client.post(f"{place}/change/", {"name": "mine", "permissions": []}).status_code == 403
        assert client.post(f"{place}/delete/", {"post": "yes"}).status_code == 403
    assert held() == table()
    assert rows() == before
