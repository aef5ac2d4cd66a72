"""Whose engines the registry has: stored by `migrate`, and asked before a process acts on an engine."""

import io
import os
import subprocess
import sys

import pytest
import requests
from django.conf import settings as current
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from config import start_check
from engines import backends, deployment, operations
from engines.backends.base import State
from engines.deployment import Found, Identity
from engines.models import Engine, Operation
from fleet import checks
from policy import key_check
from tests import waiting
from tests.conftest import running_stack
from tests.engines.registry import put_engine, put_operation
from tests.envelopes import assert_error
from tests.fleet.test_doctor import diagnose
from tests.fleet.test_migrate import migrate

MINE = Identity("roundhouse", 7001, 16384)


def find():
    return deployment.find(connection)


# -- what is stored --------------------------------------------------------------------------------------------------------


def test_migrate_stores_the_deployment_and_overwrites_none(db, as_deployment):
    assert find().stored is None
    assert migrate() == []
    found = find()
    assert found.stored == found.here
    assert found.here.name == current.ENV.deployment
    assert found.here.system > 0 < found.here.database
    as_deployment("staging")
    (warning,) = migrate()  # the tables are brought up to date all the same: a take-over comes after this
    assert warning == f"warning: {find().fault}"
    assert find().stored == found.stored


def test_application_reads_and_stores_with_its_own_role(own_database):
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        assert cursor.fetchone() == (current.DATABASES["default"]["USER"],)
    assert find().fault == ""


@pytest.mark.parametrize(
    ("here", "told", "back", "separate"),
    [
        (MINE._replace(name="staging"), "ORCH_DEPLOYMENT is staging. ", True, "original, run "),
        (MINE._replace(system=7002), "the cluster's system identifier is 7002 (stored: 7001). ", False, "set another"),
        (MINE._replace(database=5), "the database's object id is 5 (stored: 16384). ", False, "set another"),
        (
            Identity("staging", 7002, 5),
            "ORCH_DEPLOYMENT is staging and the cluster's system identifier is 7002 (stored: 7001). ",
            True,
            "original, run ",
        ),
    ],
    ids=["name", "cluster", "database", "name and cluster"],
)
def test_fault_says_what_differs_and_how_to_go_on(here, told, back, separate):
    fault = Found(MINE, here).fault
    assert fault.startswith(f"this database belongs to the deployment roundhouse, but {told}")
    assert ("set ORCH_DEPLOYMENT=roundhouse." in fault) == back
    assert separate in fault
    assert fault.index("manage.py take_over`") < fault.index("manage.py separate_copy`")
    assert "\n" not in fault


# -- who refuses -----------------------------------------------------------------------------------------------------------


@pytest.mark.deployment
def test_processes_refuse_to_start_with_one_line_and_a_code_of_their_own(own_database):
    its = {"cwd": current.BASE_DIR, "env": {**os.environ, "ORCH_DEPLOYMENT": "staging"}, "text": True}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "config.processes", "exec", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **its
        )
        for name in ("web", "worker", "keeper", "beat")
    ]
    stored_here = find()
    fault = Found(stored_here.stored, stored_here.here._replace(name="staging")).fault
    for process in started:
        said, _ = process.communicate(timeout=60)
        assert (said, process.returncode) == (f"roundhouse: {fault}\n", start_check.REFUSED)


def test_start_is_not_refused_without_a_row_or_a_table(db, as_deployment, superuser, capfd):
    as_deployment("staging")
    start_check.run()
    superuser.execute("ALTER TABLE engines_deployment RENAME TO elsewhere")
    try:
        start_check.run()
    finally:
        superuser.execute("ALTER TABLE elsewhere RENAME TO engines_deployment")
    assert capfd.readouterr().err == ""


def test_health_names_the_database_of_another_deployment(own_database, as_deployment, client):
    """As after a failover of the pool to a copy, under a process that runs."""
    usual = current.ENV.deployment
    assert client.get("/health").status_code == 200
    as_deployment("staging")
    error = assert_error(client.get("/health"), 503, "UNAVAILABLE")
    assert error["message"] == "Not able to serve: database of another deployment."
    as_deployment(usual)
    assert client.get("/health").status_code == 200


def test_health_asks_for_key_and_deployment_with_one_statement(own_database, client):
    client.get("/health")
    with CaptureQueriesContext(
        connection,
    ) as captured:
        client.get("/health")
    asking = [query["sql"] for query in captured if "engines_deployment" in query["sql"] or "policy_keycheck" in query["sql"]]
    assert len(asking) == 1


def test_check_of_a_deployment_says_the_same(own_database, as_deployment):
    assert checks.check_deployment(None) == []
    as_deployment("staging")
    (found,) = checks.check_deployment(None)
    assert (found.id, found.level) == ("fleet.E004", 40)
    assert found.msg.lower() == f"{find().fault}.".lower()


def test_doctor_says_the_same_of_deployment_and_key(own_database, as_deployment, settings):
    key_check.write()
    as_deployment("staging")
    (line,), last = diagnose()
    assert line == f"T{find().fault[1:]}. Nothing else was looked at."
    assert last == "1 fault found."
    settings.ENV = settings.ENV.model_copy(update={"master_key": "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="})
    (line,), _ = diagnose()
    assert line.startswith(key_check.WRONG)


# -- a process that runs ---------------------------------------------------------------------------------------------------


def test_operation_is_claimed_only_in_the_deployments_own_database(own_database, product, as_deployment):
    usual = current.ENV.deployment
    operation = put_operation(put_engine(product))
    as_deployment("staging")
    assert operations.claim(operation.pk) is None
    assert Operation.objects.get().attempt == 0
    as_deployment(usual)
    assert operations.claim(operation.pk) is not None


def test_running_processes_do_nothing_while_a_copy_answers_and_go_on_afterwards(own_database, product, superuser):
    """The cluster's identifier changes under web and worker, as when a pooler is led to a copy."""
    begun = "SELECT max(started_at) FROM jobs_job"
    before = superuser.execute(begun).fetchone()  # by an earlier test
    with running_stack("web", "worker", edition="small", ORCH_ENGINE_BACKEND="memory") as stack:
        waiting.until(lambda: superuser.execute(begun).fetchone() != before, 60, "the worker has begun a job")
        superuser.execute("UPDATE engines_deployment SET system = -system")
        assert requests.get(f"{stack.url}/health", timeout=10).json()["error"]["message"].endswith(f": {deployment.PART}.")
        last = superuser.execute(begun).fetchone()
        asked = stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"}, Prefer="respond-async")
        assert asked.status_code == 202
        waiting.until(lambda: "database_not_ours" in stack.log("worker"), 60, "beat has looked")
        assert superuser.execute(begun).fetchone() == last
        assert Operation.objects.get().attempt == 0
        superuser.execute("UPDATE engines_deployment SET system = -system")
        waiting.until(lambda: Operation.objects.get().state == "succeeded", 30, "the operation is carried out")
        assert stack.serves()


@pytest.mark.parametrize("command", ["resume_engines", "stop_engines", "reconcile"])
def test_command_for_all_engines_refuses_another_deployments_database(own_database, running_engine, as_deployment, command):
    as_deployment("staging")
    with pytest.raises(CommandError, match=r"^this database belongs to the deployment"):
        call_command(command, stdout=io.StringIO())
    assert [found.state for found in backends.get().list()] == [State.RUNNING]
    assert Engine.objects.get().status == "running"
