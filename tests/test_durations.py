"""A run ends with where its time went; the sleeps here are what is measured."""

import os
import re
import subprocess
import sys

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


def test_times_of_several_runs_become_one_table(tmp_path):
    """As at the end of `make test`. The first run is of two processes."""
    files = []
    for folder, more in (("first", ("-p", "xdist.plugin", "-n", "2")), ("second", ())):
        (tmp_path / folder).mkdir()
        nested.run(tmp_path / folder, CODE.replace("def test_", f"def test_{folder}_"), "-p", "tests.durations", *more)
        files.append(str(tmp_path / folder / "times.txt"))
    environment = {**os.environ, "TEST_TIMES": str(tmp_path / "all.txt")}
    command = [sys.executable, "-m", "tests.durations", *files]
    found = rows(subprocess.run(command, cwd=nested.ROOT, env=environment, capture_output=True, text=True, check=True).stdout)
    assert about(found["test_it.py::test_first_phases"], (1.0, 0.3, 0.2, 0.5))
    assert about(found["test_it.py::test_second_phases"], (1.0, 0.3, 0.2, 0.5))
    assert {name for name in found if "::" not in name} == {". (6 tests)", "quick (4 tests)", "docker (2 tests)", "all (6 tests)"}
    assert "test_second_fails" in (tmp_path / "all.txt").read_text().partition("Every test:\n")[2]
