"""The rules of a policy, as values."""

import pytest

from audit.actions import CATALOGUE, Action
from policy import rules
from policy.errors import InvalidPolicy


def test_every_rule_may_stand_in_the_audit_log():
    assert set(CATALOGUE[Action.POLICY_UPDATE].metadata) == {*rules.RULES, "admin_key"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_engines", True),
        ("max_engines", -1),
        ("max_engines", "5"),
        ("rate_limit_rpm", 1.5),
        ("rate_limit_rpm", None),
        ("images", []),
        ("images", "demo"),
        ("images", ["a b"]),
        ("images", [1]),
        ("engine_image", ""),
        ("memory_mb", 0),
        ("cpus", 0),
        ("cpus", "1"),
        ("pids", 2.5),
        ("colour", 1),
    ],
)
def test_check_names_the_key_it_refuses(key, value):
    with pytest.raises(InvalidPolicy, match=f"policy.{key}"):
        rules.check({key: value})


@pytest.mark.parametrize("policy", [None, [], "x", 1])
def test_check_refuses_what_is_no_object(policy):
    with pytest.raises(InvalidPolicy):
        rules.check(policy)


def test_lowered_only_lowers():
    assert rules.lowered({"memory_mb": 64}, "memory_mb", 512) == 64
    assert rules.lowered({"memory_mb": 1024}, "memory_mb", 512) == 512
    assert rules.lowered({}, "memory_mb", 512) == 512
