"""Tests are marked by what they and their fixtures name, and one that reaches for more than its marks say fails."""

import re

from tests import nested

CODE = """
import time
import types
import pytest
from tests.kinds import needs, require

@needs("docker")
def connect():
    require("docker")

@needs("deployment")
class Stack:
    def __init__(self):
        require("deployment")

class Longer:
    def __init__(self):
        Stack()

dock = types.ModuleType("dock")
dock.dial = connect
dock.dial.__name__ = "dial"

@pytest.fixture
@needs("sql")
def db():
    pass

@pytest.fixture
def stack(db):
    return Stack()

@pytest.fixture
def served(stack):
    pass

def test_plain():
    assert True

def test_db(db):
    assert True

def test_served(served):
    assert True

def test_function():
    connect()

def test_module():
    [dock.dial() for _ in range(1)]

def test_longer_way():
    Longer()

@pytest.mark.deployment
def test_marked():
    Longer()

@pytest.mark.parametrize("where", ["here", "docker"])
def test_chosen(where):
    assert where

class TestOverriding:
    @pytest.fixture
    def stack(self):
        pass

    def test_overridden(self, served):
        assert True
"""


def names(output):
    return set(re.findall(r"::(test_\w+(?:\[\w+\])?)$", output, re.MULTILINE))


def selected(folder, expression):
    return names(nested.run(folder, CODE, "--collect-only", "-q", "-m", expression))


def test_marks_follow_fixtures_helpers_and_parameters(tmp_path):
    assert selected(tmp_path, "docker") == {"test_function", "test_module", "test_chosen[docker]"}
    assert selected(tmp_path, "deployment") == {"test_served", "test_marked"}
    assert selected(tmp_path, "sql") == {"test_db", "test_served"}
    assert selected(tmp_path, "not (docker or deployment)") == {
        "test_plain", "test_db", "test_longer_way", "test_chosen[here]", "test_overridden",
    }  # fmt: skip


def test_unmarked_test_fails_and_is_told_its_mark(tmp_path):
    output = nested.run(tmp_path, CODE)
    assert "1 failed, 9 passed" in output
    told = "test_it.py::test_longer_way needs processes of a deployment and does not say so: mark it with @pytest.mark.deployment"
    assert told in output


def test_unknown_mark_is_refused(tmp_path):
    output = nested.run(tmp_path, "import pytest\n\n@pytest.mark.dokcer\ndef test_it(): pass\n", "--strict-markers")
    assert "'dokcer' not found in `markers`" in output


HELPERS = {
    "stack.Stack()": "deployment",
    "config.support.Run(None, 0)": "deployment",
    "config.support.manage(None)": "embedded",
    "config.local.test_launch.launch(None, 0)": "deployment",
    "engines.backends.dock.connect()": "docker",
    "engines.backends.dockerd.Dockerd()": "docker",
    "deployment.composed.Composed(None, None, [])": "deployment",
    "browser.conftest.launch(None)": "browser",
}


def test_helpers_of_this_suite_fail_a_test_without_their_mark(tmp_path):
    code = "import tests, pkgutil\n"
    for number, call in enumerate(HELPERS):
        code += f"\ndef test_{number}():\n    pkgutil.resolve_name('tests.{call.partition('(')[0]}')({call.partition('(')[2]}\n"
    output = nested.run(
        tmp_path, code, "-p", "tests.servers", "-p", "pytest_django.plugin", DJANGO_SETTINGS_MODULE="config.settings"
    )
    for number, kind in enumerate(HELPERS.values()):
        assert re.search(rf"::test_{number} needs .* mark it with @pytest.mark.{kind} ", output), output
