"""The master key that is not the one of the data: found out before any process begins its work, and not at the first admit."""

import base64
import os
import subprocess
import sys

import pytest
from cryptography.fernet import Fernet
from django.conf import settings as current
from django.core.management import CommandError, call_command
from django.db import connection

from config import start_check
from fleet import checks, master_key
from policy import crypto, key_check
from tests.engines.registry import put_engine
from tests.envelopes import assert_error

OTHER = base64.urlsafe_b64encode(bytes([7] * 32)).decode()


@pytest.fixture
def use(settings):
    """Makes these the master keys of the process, the first first."""
    usual = settings.ENV
    return lambda *keys: setattr(settings, "ENV", usual.model_copy(update={"master_key": ",".join(keys)}))


@pytest.fixture
def old(db):
    """The key of the database's data."""
    key_check.write()
    return current.ENV.master_key


def migrate():
    call_command("migrate", verbosity=0)


# -- whose key it is -----------------------------------------------------------------------------------------------------


def test_migrate_writes_the_key_check_of_an_empty_database_and_leaves_it(db, use):
    assert key_check.read(connection) is None
    assert key_check.fits(connection)
    use(OTHER, current.ENV.master_key)
    migrate()
    written = key_check.read(connection)
    assert crypto.is_current(written)
    use(current.ENV.master_key, OTHER)
    migrate()
    assert key_check.read(connection) == written


def test_migrate_refuses_a_key_that_is_not_the_one_of_the_key_check(old, use):
    use(OTHER)
    with pytest.raises(CommandError, match=r"^ORCH_MASTER_KEY is not the key of this database"):
        migrate()
    use(OTHER, old)
    migrate()


def test_migrate_writes_no_key_check_under_a_key_that_opens_no_data(product, use):
    put_engine(product)
    old = current.ENV.master_key
    use(OTHER)
    with pytest.raises(CommandError, match=r"^ORCH_MASTER_KEY is not the key"):
        migrate()
    assert key_check.read(connection) is None
    use(OTHER, old)
    migrate()
    assert key_check.fits(connection)


def test_migrate_goes_on_where_a_single_token_cannot_be_read(product):
    put_engine(product, "alice", key_ciphertext=Fernet(OTHER).encrypt(b"x").decode())
    put_engine(product, "bob")
    migrate()
    assert key_check.fits(connection)


# -- its rotation --------------------------------------------------------------------------------------------------------


def test_rotate_renews_the_key_check_after_everything_else(old, use):
    use(OTHER, old)
    assert str(master_key.columns()[-1]) == "policy_keycheck.ciphertext"
    call_command("rotate_master_key", stdout=open(os.devnull, "w"))  # noqa: SIM115
    use(OTHER)
    assert key_check.fits(connection)
    use(old)
    assert not key_check.fits(connection)


def test_rotate_takes_a_loss_only_when_told(product, old, use, capsys):
    put_engine(product)
    use(OTHER)
    with pytest.raises(CommandError, match=r"are under no key of ORCH_MASTER_KEY"):
        call_command("rotate_master_key")
    assert not key_check.fits(connection)
    with pytest.raises(CommandError, match=r"are under no key of ORCH_MASTER_KEY"):
        call_command("rotate_master_key", "--accept-loss")
    assert key_check.fits(connection)


# -- who refuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.deployment
def test_processes_refuse_to_start_with_one_line_and_a_code_of_their_own(old):
    its = {"cwd": current.BASE_DIR, "env": {**os.environ, "ORCH_MASTER_KEY": OTHER, "ORCH_PROCESSES": "small"}, "text": True}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "config.processes", "exec", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **its
        )
        for name in ("web", "worker")
    ]
    for process in started:
        said, _ = process.communicate(timeout=60)
        assert (said, process.returncode) == (f"roundhouse: {key_check.WRONG}\n", start_check.REFUSED)


def test_start_is_not_refused_with_any_key_that_fits_or_without_the_table(old, use, superuser, capfd):
    use(OTHER, old)
    start_check.run()
    superuser.execute("ALTER TABLE policy_keycheck RENAME TO elsewhere")
    try:
        use(OTHER)
        start_check.run()
    finally:
        superuser.execute("ALTER TABLE elsewhere RENAME TO policy_keycheck")
    assert capfd.readouterr().err == ""


def test_check_of_a_deployment_says_the_same(old, use):
    assert checks.check_key_of_data(None) == []
    use(OTHER)
    [found] = checks.check_key_of_data(None)
    assert (found.id, found.level) == ("fleet.E003", 40)
    assert found.msg == f"{key_check.WRONG}."


def test_health_names_the_master_key_of_a_database_that_is_another_ones(old, use, client):
    assert client.get("/health").status_code == 200
    use(OTHER)
    error = assert_error(client.get("/health"), 503, "UNAVAILABLE")
    assert error["message"] == "Not able to serve: master key not the one of the data."
    use(OTHER, old)
    assert client.get("/health").status_code == 200


def test_start_check_leaves_no_pool_behind(database):
    """The web server forks afterwards, and the threads of a pool do not survive a fork."""
    code = """
from config.web import wsgi
from common.pooled.base import DatabaseWrapper
print(DatabaseWrapper._connection_pools)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "ORCH_PROCESS": "web"}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "{}\n", done.stderr
