"""Where the time of a run goes: set-up, call and tear-down of each test, when the run ends and in a file (`-p tests.durations`).

The file that TEST_TIMES names (by default `.test-times.txt`) has the slowest tests, the folders, the kinds, and then every test.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests import kinds

PHASES = ("setup", "call", "teardown")
SLOWEST = 25
HEAD = f"{'total':>8} {'set-up':>8} {'call':>8} {'tear-down':>9}  "

Seconds = dict[str, float]  # by phase

_tests: dict[str, Seconds] = defaultdict(lambda: dict.fromkeys(PHASES, 0.0))
_kinds: dict[str, str] = {}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember the kind of each test: a report does not tell marks from folders of the same name."""
    _kinds.update((item.nodeid, kinds.kind_of(item)) for item in session.items)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the phase. A subtest has a report of another class: its time is part of its test's call, and counted there."""
    if type(report) is pytest.TestReport:
        _tests[report.nodeid][report.when or "call"] += report.duration


@pytest.hookimpl(trylast=True)  # below the failures
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the short tables, and write them to the file with every test below them."""
    if not _tests:
        return
    file = Path(os.environ.get("TEST_TIMES") or ".test-times.txt")
    short = [*_slowest(SLOWEST), "", *_by("folder", _folder), "", *_by("kind", _kind), _line(_tests.values(), "all")]
    terminalreporter.section("where the time goes (seconds)")
    terminalreporter.write_line("\n".join(short))
    file.write_text("\n".join([*short, "", "Every test:", *_slowest(len(_tests))]) + "\n")
    terminalreporter.write_line(f"\nEvery test: {file}")


def _slowest(most: int) -> Iterator[str]:
    """A line for each of the slowest tests, the slowest first."""
    yield f"{HEAD}test"
    for name, seconds in sorted(_tests.items(), key=lambda entry: -sum(entry[1].values()))[:most]:
        yield f"{_columns(seconds)}  {name}"


def _by(title: str, group_of: Callable[[str], str]) -> Iterator[str]:
    """A line for each group of tests, the dearest first."""
    groups: dict[str, list[Seconds]] = defaultdict(list)
    for name, seconds in _tests.items():
        groups[group_of(name)].append(seconds)
    yield f"{HEAD}{title}"
    for group, members in sorted(groups.items(), key=lambda entry: -sum(sum(seconds.values()) for seconds in entry[1])):
        yield _line(members, group)


def _folder(test: str) -> str:
    return str(Path(test.partition("::")[0]).parent)


def _kind(test: str) -> str:
    return _kinds.get(test, kinds.QUICK)


def _line(members: Iterable[Seconds], group: str) -> str:
    """The sums of a group, and the number of its tests."""
    listed = list(members)
    return f"{_columns({phase: sum(seconds[phase] for seconds in listed) for phase in PHASES})}  {group} ({len(listed)} tests)"


def _columns(seconds: Seconds) -> str:
    return f"{sum(seconds.values()):8.1f} {seconds['setup']:8.1f} {seconds['call']:8.1f} {seconds['teardown']:9.1f}"
