"""What each rule says, and in which order they are asked."""

import pytest

from policy import decisions, rules
from policy.errors import ImageDenied, ProductSuspended, QuotaExceeded
from policy.rate_limit import Window

DEFAULT = "roundhouse-demo-engine:latest"
DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("policy", "asked", "image"),
    [
        ({}, "", DEFAULT),
        ({}, DEFAULT, DEFAULT),
        ({"engine_image": "pinned:2"}, "", "pinned:2"),
        ({"engine_image": "pinned:2"}, "pinned:2", "pinned:2"),
        ({"engine_image": "pinned:2"}, DEFAULT, DEFAULT),
        ({"images": ["agents/*:1.*"]}, "agents/sql:1.4", "agents/sql:1.4"),
        ({"images": ["[fd00::1]:5000/sql:1"]}, "[fd00::1]:5000/sql:1", "[fd00::1]:5000/sql:1"),
        ({"images": [DIGEST]}, f"agents/sql@{DIGEST}", f"agents/sql@{DIGEST}"),
        ({"images": [DIGEST]}, DIGEST, DIGEST),
    ],
)
def test_images_allow_what_the_policy_names(policy, asked, image):
    assert rules.choose_image(policy, asked, DEFAULT) == image
    assert decisions.images(policy, image, DEFAULT).allowed


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
def test_images_refuse_every_other(policy, asked):
    image = rules.choose_image(policy, asked, DEFAULT)
    with pytest.raises(ImageDenied) as refused:
        decisions.check([decisions.images(policy, image, DEFAULT)])
    assert refused.value.metadata()["value"] == (asked or DEFAULT)


@pytest.mark.parametrize(("limit", "engines", "headroom"), [(3, 2, 1), (3, 3, 0), (3, 7, 0), (0, 0, 0), (None, 9, None)])
def test_max_engines_leaves_what_fits(limit, engines, headroom):
    decided = decisions.max_engines({} if limit is None else {"max_engines": limit}, engines)
    assert (decided.limit, decided.value, decided.headroom, decided.allowed) == (limit, engines, headroom, headroom != 0)


def test_rate_limit_says_what_its_window_says():
    left, full = decisions.rate_limit({}, Window(5, 2, 9)), decisions.rate_limit({}, Window(5, 0, 9))
    assert (left.limit, left.value, left.headroom, left.allowed) == (5, 3, 2, True)
    assert (full.limit, full.value, full.headroom, full.allowed) == (5, 5, 0, False)
    assert full.refusal.metadata() == {"rule": "rate_limit_rpm", "limit": 5, "value": 5}
    assert full.refusal.retry_after_s >= 9


def test_rate_limit_that_cannot_be_counted_allows():
    decided = decisions.rate_limit({"rate_limit_rpm": 5}, None)
    assert (decided.limit, decided.value, decided.headroom, decided.allowed) == (5, None, None, True)


def test_suspended_is_the_first_refusal_of_all():
    for decided in (
        decisions.on_admit({}, "unpaid", Window(1, 0, 1)),
        decisions.on_provision({"max_engines": 0}, "unpaid", "no:1", DEFAULT, 0),
        decisions.on_serve("unpaid"),
    ):
        with pytest.raises(ProductSuspended, match="unpaid"):
            decisions.check(decided)


def test_provision_is_refused_by_the_first_rule_that_refuses():
    decided = decisions.on_provision({"max_engines": 0}, "", "no:1", DEFAULT, 0)
    assert [(each.rule, each.allowed) for each in decided] == [("suspended", True), ("images", False), ("max_engines", False)]
    with pytest.raises(ImageDenied):
        decisions.check(decided)
    with pytest.raises(QuotaExceeded):
        decisions.check(decided[2:])
    assert len(decisions.on_provision({}, "", DEFAULT, DEFAULT, None)) == 2
