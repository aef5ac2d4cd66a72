"""What is refused at the start."""

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


def test_retention_below_the_floor_is_refused():
    with pytest.raises(
        ValidationError, match=r"ORCH_AUDIT_RETENTION_DAYS=182 is below the floor of 183 days: .* lower ORCH_AUDIT_RE"
    ):
        production(audit_retention_days=182)
    kept = production(audit_retention_days=30, audit_retention_floor_days=30, audit_probe_retention_days=1)
    assert (kept.audit_retention_days, kept.audit_probe_retention_days) == (30, 1)


OIDC = {
    "oidc_issuer": "https://login.example.com",
    "oidc_client_id": "roundhouse",
    "oidc_client_secret": "a secret",
    "oidc_groups": "platform=operators, security=auditors,a=b=auditors",
}


def test_groups_of_the_provider_are_mapped_in_pairs():
    assert Env(**OIDC).oidc_mapping == (("platform", "operators"), ("security", "auditors"), ("a=b", "auditors"))
    assert Env(**OIDC | {"oidc_issuer": "http://127.0.0.1:8080/realm"}).oidc_issuer == "http://127.0.0.1:8080/realm"
    assert Env().oidc_mapping == ()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("oidc_issuer", "http://login.example.com", "https"),
        ("oidc_issuer", "login.example.com", "without a query"),
        ("oidc_issuer", "https://", "without a query"),
        ("oidc_issuer", "https://login.example.com/?realm=staff", "without a query"),
        ("oidc_client_id", "", "needs ORCH_OIDC_CLIENT_ID"),
        ("oidc_client_secret", "", "needs ORCH_OIDC_CLIENT_SECRET"),
        ("oidc_groups", "", "needs ORCH_OIDC_GROUPS"),
        ("oidc_groups", "platform", "a group of ours"),
        ("oidc_groups", "platform=", "a group of ours"),
        ("oidc_groups", "=operators", "a group of ours"),
        ("oidc_scopes", "profile", "openid"),
    ],
)
def test_single_sign_on_that_cannot_work_is_refused(name, value, words):
    with pytest.raises(ValidationError, match=words):
        Env(**OIDC | {name: value})
