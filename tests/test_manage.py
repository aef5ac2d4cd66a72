"""The command line: a database that nobody has migrated is told in a sentence, by every command that reads tables."""

import json
import os
import subprocess
import sys

import pytest

from config.local.home import BASE_DIR
from tests import servers

COMMANDS = (
    ["audit_check"],
    ["audit_check", "--since", "last"],
    ["rotate_master_key"],
    ["rotate_master_key", "--check"],
    ["rotate_master_key", "--accept-loss"],
    ["resume_engines"],
    ["try_runtime", "runc"],
    ["createsuperuser", "--username", "rita", "--noinput"],
    ["changepassword", "rita"],
    ["remove_second_factor", "rita"],
)
BENCH = ["bench", "transition", "--rounds", "1", "--count", "1"]  # has a sentence of its own
EACH = """
import json, sys
import manage

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["manage.py", *arguments]
    try:
        manage.main()
    except SystemExit as end:
        print(json.dumps([arguments, end.code]))
"""
"""One process for all commands: a process costs two seconds, nearly all of them imports."""


@pytest.fixture
def unmigrated(superuser):
    """The URL of a database without tables, as the application and as the owner. The database ends with the run's server.

    DROP DATABASE would wait for every session of the server, up to a minute for a session that has yet to authenticate.
    """
    superuser.execute("CREATE DATABASE unmigrated")
    return {
        "ORCH_DATABASE_URL": _elsewhere(servers.SERVERS.urls.database),
        "ORCH_DATABASE_OWNER_URL": _elsewhere(servers.SERVERS.urls.owner),
    }


def _elsewhere(url):
    before, _, name = url.partition("?")[0].rpartition("/")
    return url.replace(f"{before}/{name}", f"{before}/unmigrated", 1)


def test_commands_ask_for_migrate_on_a_database_without_tables(unmigrated):
    environment = {**os.environ, **unmigrated, "ORCH_ENGINE_BACKEND": "memory", "DJANGO_SUPERUSER_PASSWORD": "none"}
    command = [sys.executable, "-c", EACH, json.dumps([*COMMANDS, BENCH])]
    done = subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True, timeout=60, check=False)
    ends = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    sentence = "manage.py: migrations are missing: run `python -m config.processes exec migrate` first."
    assert ends == [*([arguments, sentence] for arguments in COMMANDS), [BENCH, 1]], done.stderr
    assert done.stderr.splitlines() == ["CommandError: The database has no tables yet: run manage.py migrate first."]
