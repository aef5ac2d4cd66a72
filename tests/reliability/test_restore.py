"""A backup of the database that is older than the engines: dumped with `pg_dump`, restored with `pg_restore`."""

import subprocess

import pytest
import requests
from django.core.management import call_command
from django.db import connections

from audit import actors
from audit.models import AuditRow
from config.local import postgres
from engines import backends, lifecycle, reconcile, specs
from engines.addresses import url
from engines.backends.base import State
from engines.models import Engine, Operation, Status
from policy import crypto
from policy.models import Product
from tests import servers
from tests.conftest import empty

ACME = actors.product("acme")
TABLES = ("engines_*", "policy_*", "audit_log*")


@pytest.fixture
def backup(tmp_path):
    """Makes a backup; returns what restores it."""

    def run(command, *arguments):
        where = f"--dbname={servers.SERVERS.urls.superuser}"
        subprocess.run([postgres.binaries() / command, where, *arguments], check=True, capture_output=True, timeout=60)

    def make():
        dump = str(tmp_path / "roundhouse.dump")
        run("pg_dump", "--format=custom", "--data-only", f"--file={dump}", *(f"--table=public.{each}" for each in TABLES))

        def restore():
            connections.close_all()
            empty()
            run("pg_restore", "--data-only", "--disable-triggers", "--single-transaction", dump)

        return restore

    return make


def call(engine, method, path, body=None):
    """The engine's own answer to a call with the key that the registry has."""
    key = crypto.decrypt(engine.key_ciphertext)
    return requests.request(method, f"{url(engine)}{path}", json=body, headers={"X-Engine-Key": key}, timeout=5)


def answers(engine):
    return call(engine, "GET", "/counter").status_code


@pytest.fixture
def rotated_since(engine_processes, running_engine, carry_out, backup):
    """An engine whose key was rotated after the backup that has been restored since."""
    reconcile.host_is_settled()
    restore = backup()
    carry_out(lifecycle.rotate_key(running_engine, by=ACME))
    newer = backends.get().list()[0].ref
    restore()
    engine = Engine.objects.get()
    assert (engine.incarnation, engine.incarnations, newer.incarnation) == (1, 1, 2)
    return engine


def agree(engine):
    """Registry, runtime and log agree."""
    engine.refresh_from_db()
    (found,) = backends.get().list()
    assert (engine.status, found.ref, found.state) == (Status.RUNNING, specs.ref_of(engine), State.RUNNING)
    call_command("audit_check")


def test_rotation_before_the_first_sweep_gives_a_key_that_the_engine_takes(rotated_since, carry_out):
    assert carry_out(lifecycle.rotate_key(rotated_since, by=ACME)).state == "succeeded"
    agree(rotated_since)
    assert (rotated_since.incarnation, answers(rotated_since)) == (2, 200)


def test_resume_clears_the_newer_instance_and_restarts_the_engine_once(rotated_since, carry_out):
    reconcile.begin()
    (operation,) = Operation.objects.filter(finished_at=None)
    assert carry_out(operation).state == "succeeded"
    agree(rotated_since)
    assert answers(rotated_since) == 200
    rows = AuditRow.objects.filter(engine_id=rotated_since.pk).order_by("id").values_list("action", flat=True)
    assert list(rows) == ["provision_requested", "provision", "orphan_removed", "restart"]
    assert AuditRow.objects.get(action="restart").metadata["cause"] == "reconciled"  # no host was restarted


def test_backup_from_the_middle_of_a_rotation_ends_the_rotation(running_engine, carry_out, backup):
    operation = lifecycle.rotate_key(running_engine, by=ACME)
    restore = backup()
    carry_out(operation)
    carry_out(lifecycle.rotate_key(Engine.objects.get(), by=ACME))
    restore()
    assert carry_out(Operation.objects.get(pk=operation.pk)).state == "succeeded"
    engine = Engine.objects.get()
    agree(engine)
    assert engine.mark == operation.mark


@pytest.fixture
def made_since(engine_processes, product, carry_out, backup, make_engine):
    """The id of an engine that was made, and has counted to 1, since the backup that has been restored."""
    restore = backup()
    engine = make_engine("bob")
    assert call(engine, "POST", "/execute", {"input": "one turn"}).status_code == 200
    restore()
    assert not Engine.objects.exists()
    return engine.pk


def test_engine_made_since_the_backup_comes_back_with_its_data(made_since, carry_out):
    call_command("reconcile", "--adopt", "all", "--reason", "restored")
    assert carry_out(Operation.objects.get()).state == "succeeded"
    engine = Engine.objects.get()
    agree(engine)
    assert (engine.pk, engine.user_id) == (made_since, "bob")
    assert call(engine, "GET", "/counter").json()["counter"] == 1
    assert AuditRow.objects.get(action="engine_adopted").engine_id == made_since


def test_engine_made_since_the_backup_stays_until_a_person_removes_it(made_since, product):
    reconcile.begin()
    reconcile.sweep()
    assert set(backends.get().list_volumes()) == {made_since}
    call_command("reconcile", "--forget", str(made_since), "--noinput")
    assert (backends.get().list(), backends.get().list_volumes()) == ([], {})
    assert AuditRow.objects.get(action="engine_forgotten").user_id == "bob"
    call_command("audit_check")


def test_provision_after_a_restore_says_that_there_is_older_data(made_since, carry_out):
    reconcile.look()  # as every worker does at its start
    product = Product.objects.get()
    operation = carry_out(lifecycle.provision(product, "bob", by=ACME))
    assert operation.params["unregistered"] == [str(made_since)]
    assert AuditRow.objects.get(action="provision").metadata["unregistered"] == [str(made_since)]


def test_engine_destroyed_since_the_backup_is_listed_and_its_restart_says_that_its_data_is_gone(
    engine_processes, running_engine, carry_out, backup, capsys
):
    restore = backup()
    carry_out(lifecycle.destroy(running_engine, by=ACME))
    restore()
    call_command("reconcile", "--dry-run")
    assert f"  {running_engine.pk}  product acme, user alice: running" in capsys.readouterr().out
    reconcile.begin()
    assert carry_out(Operation.objects.get(finished_at=None)).state == "succeeded"
    assert AuditRow.objects.get(action="restart").metadata["volume"] == "missing"
