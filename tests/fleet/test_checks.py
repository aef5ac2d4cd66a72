"""`check --deploy`: what it says of the servers and hosts in the settings."""

import os
import subprocess
import sys

import pytest
from cryptography.fernet import Fernet
from pydantic import ValidationError

from common.env import Env
from config.local.home import BASE_DIR
from fleet import checks

CAREFUL = {
    "ORCH_DATABASE_URL": "postgresql://app:p@db.example.com/x?sslmode=verify-full",
    "ORCH_DATABASE_OWNER_URL": "postgresql://owner:p@db.example.com/x?sslmode=verify-full",
    "ORCH_REDIS_URL": "rediss://:password@valkey.example.com:6379/0?ssl_ca_certs=/etc/ca.pem",
    "ORCH_ALLOWED_HOSTS": "roundhouse.example.com",
}
CARELESS = {
    "ORCH_DATABASE_URL": "postgresql://app:p@db.example.com/x?sslmode=require",
    "ORCH_DATABASE_OWNER_URL": "postgresql://owner:p@10.0.0.5/x",
    "ORCH_REDIS_URL": "redis://valkey.example.com",
    "ORCH_ALLOWED_HOSTS": "roundhouse.example.com,*",
}


def check(**variables):
    """Exit code, and what the command says."""
    environment = {
        **os.environ,
        "ORCH_ENVIRONMENT": "production",
        "ORCH_ADMIN_KEY": "a" * 50,
        "ORCH_SECRET_KEY": "".join(map(chr, range(48, 48 + 60))),
        "ORCH_MASTER_KEY": Fernet.generate_key().decode(),
        **variables,
    }
    command = [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"]
    done = subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_check_says_nothing_of_careful_settings():
    assert check(**CAREFUL)[0] == 0


def test_check_warns_of_careless_settings_and_shows_no_password():
    code, said = check(**CARELESS)
    assert code == 1
    for number in (3, 4, 5, 6):
        assert f"fleet.W00{number}" in said
    assert said.count("fleet.W005") == 2
    assert ":p@" not in said


def test_check_does_not_ask_for_tls_to_servers_on_this_machine():
    urls = {
        "ORCH_DATABASE_URL": "postgresql://app:p@postgres/x",
        "ORCH_DATABASE_OWNER_URL": "postgresql://owner:p@%2Frun%2Fpg/x",
        "ORCH_REDIS_URL": "redis://:password@redis:6379/0",
    }
    assert check(**CAREFUL | urls, ORCH_SAME_HOST="redis,postgres")[0] == 0


URLS = {
    "redis://:p@127.0.0.1": [],
    "redis://:p@[::1]:6379": [],
    "redis://localhost": ["fleet.W003"],
    "unix:///run/valkey.sock": [],
    "redis://:p@10.0.0.5": ["fleet.W004"],
    "rediss://:p@10.0.0.5": [],
    "rediss://user:p@10.0.0.5/1?ssl_cert_reqs=required&ssl_check_hostname=true": [],
    "rediss://:p@10.0.0.5?ssl_cert_reqs=none": ["fleet.W004"],
    "rediss://:p@10.0.0.5?ssl_cert_reqs=CERT_NONE": ["fleet.W004"],
    "rediss://:p@10.0.0.5?ssl_check_hostname=false": ["fleet.W004"],
}


@pytest.mark.parametrize("url", URLS)
def test_valkey_needs_a_password_and_on_another_host_tls(url, settings):
    settings.ENV = settings.ENV.model_copy(update={"redis_url": url})
    assert [warning.id for warning in checks.check_valkey(None)] == URLS[url]


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"engine_backend": "docker"}, ["fleet.I001"]),
        ({"engine_backend": "docker", "engine_disk_quota": True}, []),
        ({"engine_backend": "subprocess"}, []),
    ],
)
def test_check_says_where_volumes_are_only_measured(settings, chosen, told):
    settings.ENV = settings.ENV.model_copy(update=chosen)
    assert [message.id for message in checks.check_disk_quota(None)] == told


def test_quota_is_refused_without_docker():
    with pytest.raises(ValidationError, match="ORCH_ENGINE_DISK_QUOTA needs ORCH_ENGINE_BACKEND=docker"):
        Env(engine_backend="subprocess", engine_disk_quota=True)
