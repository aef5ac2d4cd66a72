"""The rules of a policy, as values and as decisions."""

import pytest

from audit.actions import CATALOGUE, Action
from policy import rules
from policy.errors import ImageDenied, InvalidPolicy

DEFAULT = "roundhouse-demo-engine:latest"
DIGEST = "sha256:" + "a" * 64


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


@pytest.mark.parametrize(
    ("policy", "asked", "image"),
    [
        ({}, "", DEFAULT),
        ({}, DEFAULT, DEFAULT),
        ({"engine_image": "pinned:2"}, "", "pinned:2"),
        ({"engine_image": "pinned:2"}, "pinned:2", "pinned:2"),
        ({"engine_image": "pinned:2"}, DEFAULT, DEFAULT),
        ({"images": ["agents/*:1.*"]}, "agents/sql:1.4", "agents/sql:1.4"),
        ({"images": [DIGEST]}, f"agents/sql@{DIGEST}", f"agents/sql@{DIGEST}"),
        ({"images": [DIGEST]}, DIGEST, DIGEST),
    ],
)
def test_choose_image_takes_what_the_policy_allows(policy, asked, image):
    assert rules.choose_image(policy, asked, DEFAULT) == image


@pytest.mark.parametrize(
    ("policy", "asked"),
    [
        ({}, "other:1"),
        ({"images": ["agents/*:1.*"]}, "agents/sql:2.0"),
        ({"images": ["agents/*"]}, ""),
        ({"images": ["agents/*"]}, DEFAULT),
        ({"images": [DIGEST]}, "agents/sql:latest"),
        ({"images": [DIGEST]}, "agents/sql@sha256:" + "b" * 64),
    ],
)
def test_choose_image_refuses_every_other(policy, asked):
    with pytest.raises(ImageDenied) as refused:
        rules.choose_image(policy, asked, DEFAULT)
    assert refused.value.metadata()["value"] == (asked or DEFAULT)


def test_lowered_only_lowers():
    assert rules.lowered({"memory_mb": 64}, "memory_mb", 512) == 64
    assert rules.lowered({"memory_mb": 1024}, "memory_mb", 512) == 512
    assert rules.lowered({}, "memory_mb", 512) == 512
