"""A run ends with where its time went; the sleeps here are what is measured."""

import re

from tests import nested

CODE = """
import time
import pytest

@pytest.fixture
def slow():
    time.sleep(0.3)
    yield
    time.sleep(0.5)

def test_phases(slow):
    time.sleep(0.2)

def test_subtests(subtests):
    for number in range(2):
        with subtests.test(number=number):
            time.sleep(0.2)

@pytest.mark.docker
def test_fails():
    assert False
"""
LINE = re.compile(r"^ +(\d+\.\d) +(\d+\.\d) +(\d+\.\d) +(\d+\.\d)  (.+)$", re.MULTILINE)


def rows(text):
    """Total, set-up, call and tear-down by what the line is about."""
    return {line[4]: tuple(float(seconds) for seconds in line[:4]) for line in LINE.findall(text)}


def about(measured, expected):
    return all(wanted <= found <= wanted + 0.35 for found, wanted in zip(measured, expected, strict=True))


def test_run_ends_with_its_slowest_tests_folders_and_kinds(tmp_path):
    output = nested.run(tmp_path, CODE, "-p", "tests.durations")
    table = output.partition("where the time goes (seconds)")[2]
    assert re.search(r"total +set-up +call +tear-down +test\n", table)
    found = rows(table)
    assert list(found)[:3] == ["test_it.py::test_phases", "test_it.py::test_subtests", "test_it.py::test_fails"]
    assert about(found["test_it.py::test_phases"], (1.0, 0.3, 0.2, 0.5))
    assert about(found["test_it.py::test_subtests"], (0.4, 0.0, 0.4, 0.0))  # a subtest is not counted a second time
    assert about(found[". (3 tests)"], (1.4, 0.3, 0.6, 0.5))
    assert found["all (3 tests)"] == found[". (3 tests)"]
    assert about(found["quick (2 tests)"], (1.4, 0.3, 0.6, 0.5))
    assert found["docker (1 tests)"][2] < 0.35


def test_file_has_every_test(tmp_path):
    code = "import pytest\n\n@pytest.mark.parametrize('number', range(30))\ndef test_it(number): pass\n"
    printed = rows(nested.run(tmp_path, code, "-p", "tests.durations"))
    short, _, every = (tmp_path / "times.txt").read_text().partition("Every test:\n")
    assert sum("::" in name for name in printed) == sum("::" in name for name in rows(short)) == 25
    assert [line.split()[4] for line in every.splitlines()[1:]] == ["quick"] * 30


def test_run_that_goes_on_from_another_ends_with_the_times_of_both(tmp_path):
    """As `make test` does, whose quick tests run in two processes."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    before = str(first / "times.txt")
    nested.run(first, CODE, "-p", "tests.durations", "-p", "xdist.plugin", "-n", "2")
    after = (
        CODE.replace("test_phases", "test_later").replace("test_subtests", "test_more").replace("test_fails", "test_fails_too")
    )
    found = rows(nested.run(second, after, "-p", "tests.durations", TEST_TIMES_AFTER=before))
    assert about(found["test_it.py::test_phases"], (1.0, 0.3, 0.2, 0.5))
    assert about(found["test_it.py::test_later"], (1.0, 0.3, 0.2, 0.5))
    assert {name for name in found if "::" not in name} == {". (6 tests)", "quick (4 tests)", "docker (2 tests)", "all (6 tests)"}
