"""What production refuses at its start."""

import pytest
from cryptography.fernet import Fernet
from pydantic import ValidationError

from common.env import Env

KEYS = {"admin_key": "a" * 32, "secret_key": "s" * 32}


def production(**changes):
    given = {
        **KEYS,
        "master_key": Fernet.generate_key().decode(),
        "database_url": "postgresql://db",
        "redis_url": "redis://valkey",
    }
    return Env(environment="production", **given | changes)


def test_production_takes_keys_of_32_characters():
    assert production().admin_key == KEYS["admin_key"]


@pytest.mark.parametrize("name", KEYS)
def test_production_refuses_a_shorter_key_and_does_not_repeat_it(name):
    with pytest.raises(ValidationError, match=f"ORCH_{name.upper()}: a key must have at least 32") as refused:
        production(**{name: "k" * 31})
    assert "kkk" not in str(refused.value)


def test_local_run_takes_any_key():
    assert Env(environment="local", admin_key="short").admin_key == "short"
