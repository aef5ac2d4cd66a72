"""A database that is another deployment's: taken over with its engines, or separated from its original."""

import io
import os
import subprocess
import sys

import psycopg
import pytest
from django.conf import settings as current
from django.core.management import CommandError, call_command
from django.db import connection

from audit import actors
from audit.models import AuditRow
from config import start_check
from engines import backends, deployment, lifecycle, reconcile, unregistered
from engines.models import Engine, Operation, Status
from fleet import copies
from tests.conftest import make_running
from tests.copies import promote, restored
from tests.engines.unregistered.test_unregistered import make_unknown

ACME = actors.product("acme")


def command(name, *arguments):
    out = io.StringIO()
    call_command(name, *arguments, stdout=out)
    return out.getvalue()


def move_elsewhere():
    """Store another cluster, as if this database had been restored from there."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE engines_deployment SET system = 7001")


def answer(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def fault():
    return deployment.find(connection).fault


def agree():
    """Registry and log agree."""
    assert "agree" in command("audit_check")


def look():
    """What the runtime has: instances with their states, and volumes."""
    backend = backends.get()
    return sorted((str(each.ref), each.state) for each in backend.list()), backend.list_volumes()


# -- taking over -----------------------------------------------------------------------------------------------------------


def test_take_over_stores_the_present_cluster_and_keeps_the_engines(own_database, running_engine):
    move_elsewhere()
    before = look()
    said = command("take_over", "--noinput")
    assert said.startswith("Now this database belongs to the deployment")
    assert fault() == ""
    row = AuditRow.objects.get(action="deployment_taken_over")
    here = deployment.find(connection).here
    assert row.metadata["before"] == {"name": here.name, "system": "7001", "database": str(here.database)}
    assert row.metadata["after"]["system"] == str(here.system)
    assert (row.actor, row.product_id, look()) == ("system", None, before)
    assert Engine.objects.get().status == Status.RUNNING
    agree()
    assert command("take_over") == f"Nothing to do: this database is the one of the deployment {here.name}.\n"


@pytest.mark.parametrize("name", ["take_over", "separate_copy"])
@pytest.mark.parametrize("text", ["no\n", "\n", ""], ids=["no", "nothing", "no terminal"])
def test_neither_act_changes_anything_without_a_yes(own_database, running_engine, as_deployment, monkeypatch, name, text):
    as_deployment("staging")
    answer(monkeypatch, text)
    with pytest.raises(CommandError, match=r"^Nothing is changed\."):
        command(name)
    assert fault()
    assert Engine.objects.get().status == Status.RUNNING


def test_take_over_asks_and_goes_on_after_a_yes(own_database, as_deployment, monkeypatch):
    as_deployment("renamed")
    answer(monkeypatch, "yes\n")
    command("take_over")
    assert fault() == ""


def test_take_over_gives_engines_on_docker_no_other_name(own_database, running_engine, as_deployment, settings):
    """Containers and volumes have the name as a label: a deployment with another name would not find them."""
    usual = settings.ENV.deployment
    as_deployment("renamed")
    settings.ENV = settings.ENV.model_copy(update={"engine_backend": "docker"})
    with pytest.raises(CommandError, match=rf"^1 engines are containers .* Set ORCH_DEPLOYMENT={usual};"):
        command("take_over", "--noinput")
    Engine.objects.update(status=Status.DESTROYED, destroyed_at="2026-01-01T00:00:00Z")
    command("take_over", "--noinput")
    assert fault() == ""


# -- separating ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(own_database, product, carry_out, as_deployment):
    """A copy, on the same runtime as its original: a running engine, a stopped one, and one in the middle of a rotation."""
    for user_id in ("alice", "bob", "carol"):
        make_running(product, user_id, carry_out)
    carry_out(lifecycle.stop(Engine.objects.get(user_id="bob"), by=ACME))
    lifecycle.rotate_key(Engine.objects.get(user_id="carol"), by=ACME)
    as_deployment("staging")


def test_separation_touches_nothing_of_the_original(copy, product, carry_out):
    before = look()
    assert "3 engines of the original are tombstones" in command("separate_copy", "--noinput")
    assert fault() == ""
    assert set(Engine.objects.values_list("status", "disowned", "key_ciphertext", "pending_key_ciphertext")) == {
        ("destroyed", True, "", "")
    }
    assert Operation.objects.get(kind="rotate_key").state == "superseded"
    rows = AuditRow.objects.filter(action="engine_disowned").values_list("from_status", "to_status")
    assert sorted(rows) == [("running", "destroyed"), ("running", "destroyed"), ("stopped", "destroyed")]
    assert AuditRow.objects.get(action="operation_superseded").metadata["superseded_by"] == "separate_copy"
    assert AuditRow.objects.get(action="deployment_separated").metadata["engines"] == 3
    agree()

    # The copy works: its sweeps leave alone what is the original's, and the same users get engines of their own.
    assert reconcile.sweep() == 0
    reconcile.begin()
    assert look() == before
    engine = make_running(product, "alice", carry_out)
    carry_out(lifecycle.destroy(engine, by=ACME))
    reconcile.sweep()
    assert look() == before
    agree()


def test_separation_leaves_volumes_without_an_instance_alone(copy, carry_out):
    """The original has lost a container: its volume must not pass for one that a late worker has left in the copy."""
    alice = Engine.objects.get(user_id="alice")
    backends.get().destroy(next(each.ref for each in backends.get().list() if each.ref.engine_id == alice.pk))
    command("separate_copy", "--noinput")
    assert reconcile.sweep() == 0
    assert alice.pk in backends.get().list_volumes()


def test_separation_removes_nothing_that_the_original_was_asked_to_remove(copy):
    """The wish to remove an unregistered engine is a row, and so in the copy as well."""
    engine_id = make_unknown()
    unregistered.forget(engine_id, by=actors.SYSTEM)
    command("separate_copy", "--noinput")
    assert unregistered.remove_forgotten() == 0
    assert engine_id in backends.get().list_volumes()


def test_separation_asks_for_another_name(own_database, running_engine):
    move_elsewhere()
    with pytest.raises(CommandError, match=r"Set another ORCH_DEPLOYMENT, and run the command again\.$"):
        command("separate_copy", "--noinput")
    assert Engine.objects.get().status == Status.RUNNING


def test_killed_separation_starts_no_process_and_is_repeated(copy, superuser):
    found = copies.plan_separation()
    first = Engine.objects.living().order_by("pk").first()
    lifecycle.disown(first.pk, by=actors.SYSTEM)  # and no more: killed
    assert fault()
    with pytest.raises(SystemExit) as refused:
        start_check.run()
    assert refused.value.code == start_check.REFUSED
    copies.separate(found, by=actors.SYSTEM)
    assert AuditRow.objects.filter(action="engine_disowned").count() == 3
    assert AuditRow.objects.get(action="deployment_separated").metadata["engines"] == 3
    agree()


def test_engine_is_not_disowned_without_its_row(copy, superuser):
    superuser.execute("DELETE FROM audit_action WHERE action = 'engine_disowned'")
    try:
        with pytest.raises(Exception, match="no action engine_disowned"):
            command("separate_copy", "--noinput")
    finally:
        superuser.execute("INSERT INTO audit_action VALUES ('engine_disowned', 'standard')")
    assert not Engine.objects.filter(disowned=True).exists()
    assert Operation.objects.get(kind="rotate_key").state == "pending"
    assert fault()


# -- another cluster -------------------------------------------------------------------------------------------------------


def python(cluster, *arguments, **variables):
    """Run Python on the cluster's database as the application; returns its exit code, and what it said on stderr and stdout."""
    urls = {"ORCH_DATABASE_URL": cluster.urls.database, "ORCH_DATABASE_OWNER_URL": cluster.urls.owner}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=current.BASE_DIR,
        env={**os.environ, **urls, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr, done.stdout


def upgrade_from_before(cluster, here):
    """Migrate the cluster as if its dump was older than the stored deployment: the last audit row says where it is from."""
    with psycopg.connect(cluster.urls.superuser, autocommit=True) as there:
        there.execute("DELETE FROM engines_deployment")
        there.execute("DELETE FROM auth_group")  # `migrate` makes the groups again, with audit rows of the new cluster
        code, said, _ = python(cluster, "manage.py", "migrate")
        assert code == 0
        assert "warning: this database belongs to the deployment" in said
        assert there.execute("SELECT system FROM engines_deployment").fetchall() == [(here.system,)]


START = ("-c", "from config.web import wsgi")


def test_dump_in_another_cluster_waits_for_a_take_over(own_database, running_engine, tmp_path):
    with restored(tmp_path) as cluster:
        code, said, _ = python(cluster, *START, ORCH_PROCESS="web")
        here = deployment.find(connection).here
        assert code == start_check.REFUSED
        assert said.startswith(f"roundhouse: this database belongs to the deployment {here.name}, but the cluster's system id")
        assert f"(stored: {here.system})" in said
        upgrade_from_before(cluster, here)
        assert python(cluster, "manage.py", "take_over", "--noinput")[0] == 0
        assert python(cluster, *START, ORCH_PROCESS="web") == (0, "", "")
        promote(cluster)  # the cluster stays what it is: nothing has to be done
        assert python(cluster, *START, ORCH_PROCESS="web") == (0, "", "")
        assert python(cluster, "manage.py", "audit_check")[0] == 0
        with psycopg.connect(cluster.urls.database) as there:
            rows = there.execute("SELECT metadata -> 'before' ->> 'system' FROM audit_log WHERE action LIKE 'deployment%'")
            assert rows.fetchall() == [(str(here.system),)]
    assert fault() == ""  # nothing has happened to the original
