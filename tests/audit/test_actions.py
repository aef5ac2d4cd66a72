from typing import get_args

import pytest

from audit.actions import Action, Retention
from audit.catalogue import CATALOGUE, CLAMPED
from audit.metadata import check_metadata


def test_catalogue_has_every_action():
    assert set(CATALOGUE) == set(Action)


def test_catalogue_says_what_each_action_means():
    for action, entry in CATALOGUE.items():
        assert entry.meaning, action
        assert entry.triggered_by, action
        assert CLAMPED not in entry.metadata
        for kind in entry.metadata.values():
            assert set(get_args(kind) or (kind,)) <= {str, int, float, bool, list, dict}


def test_catalogue_keeps_only_probes_briefly():
    assert [action for action, entry in CATALOGUE.items() if entry.retention is Retention.PROBE] == [Action.HEALTH_CHECK]


def test_check_metadata_accepts_what_the_catalogue_names():
    check_metadata(Action.START, {})
    check_metadata(Action.HEALTH_FAILED, {"result": "timeout", "failures": 3, "restart_in_s": 5.5})
    check_metadata(Action.HEALTH_FAILED, {"restart_in_s": 5})
    check_metadata(Action.HEALTH_CHECK, {"healthy": True})


@pytest.mark.parametrize("key", ["api_key", "user_id", CLAMPED, ""])
def test_check_metadata_refuses_another_key(key):
    with pytest.raises(ValueError, match="not in the catalogue"):
        check_metadata(Action.START, {key: "x"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attempt", "1"),
        ("attempt", 1.5),
        ("attempt", True),
        ("attempt", None),
        ("image", 7),
        ("image", None),
        ("image", {"a": 1}),
    ],
)
def test_check_metadata_refuses_another_type(key, value):
    with pytest.raises(TypeError, match=f"'{key}' must be"):
        check_metadata(Action.START, {key: value})


@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_check_metadata_refuses_what_only_looks_like_a_bool(value):
    with pytest.raises(TypeError, match="must be bool"):
        check_metadata(Action.HEALTH_CHECK, {"healthy": value})
