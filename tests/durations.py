"""Where the time of a run goes: set-up, call and tear-down of each test, when the run ends and in a file (`-p tests.durations`).

The file that TEST_TIMES names (by default `.test-times.txt`) has the slowest tests, the folders, the kinds, and then every test.

python -m tests.durations FILE ...     the same of several runs, from the files that they have written
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests import kinds

PHASES = ("setup", "call", "teardown")
SLOWEST = 25
HEAD = f"{'total':>8} {'set-up':>8} {'call':>8} {'tear-down':>9}  "
EVERY = "Every test:\n"
TITLE = "where the time goes (seconds)"

Seconds = dict[str, float]  # by phase

_tests: dict[str, Seconds] = defaultdict(lambda: dict.fromkeys(PHASES, 0.0))
_kinds: dict[str, str] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put a test's kind on its reports: these may come from another process, and do not tell marks from folders."""
    for item in items:
        item.user_properties.append(("kind", kinds.kind_of(item)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count the phase. A subtest has a report of another class: its time is part of its test's call, and counted there."""
    if type(report) is pytest.TestReport:
        _tests[report.nodeid][report.when or "call"] += report.duration
        _kinds[report.nodeid] = str(dict(report.user_properties).get("kind", kinds.QUICK))


@pytest.hookimpl(trylast=True)  # below the failures
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the short tables, and write them to the file with every test below them."""
    if _tests:
        terminalreporter.section(TITLE)
        terminalreporter.write_line(_write())


def _write() -> str:
    """Write the file; what of it is printed."""
    file = Path(os.environ.get("TEST_TIMES") or ".test-times.txt")
    short = [*_slowest(SLOWEST), "", *_by("folder", _folder), "", *_by("kind", _kinds.__getitem__), _line(_tests.values(), "all")]
    file.write_text("\n".join([*short, "", EVERY.strip(), *_every()]) + "\n")
    return "\n".join([*short, "", f"Every test: {file}"])


def _take_in(table: str) -> None:
    """What `_every` has written."""
    for line in table.splitlines()[1:]:
        _, *seconds, kind, name = line.split(maxsplit=5)
        _tests[name] = dict(zip(PHASES, map(float, seconds), strict=True))
        _kinds[name] = kind


def _sorted() -> list[tuple[str, Seconds]]:
    return sorted(_tests.items(), key=lambda entry: -sum(entry[1].values()))


def _slowest(most: int) -> Iterator[str]:
    """A line for each of the slowest tests, the slowest first."""
    yield f"{HEAD}test"
    for name, seconds in _sorted()[:most]:
        yield f"{_columns(seconds)}  {name}"


def _every() -> Iterator[str]:
    """A line for each test, the slowest first, to the millisecond: many are so quick that tenths of a second would lose them."""
    yield f"{HEAD}kind        test"
    for name, seconds in _sorted():
        yield f"{_columns(seconds, 3)}  {_kinds[name]:<10}  {name}"


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


def _line(members: Iterable[Seconds], group: str) -> str:
    """The sums of a group, and the number of its tests."""
    listed = list(members)
    return f"{_columns({phase: sum(seconds[phase] for seconds in listed) for phase in PHASES})}  {group} ({len(listed)} tests)"


def _columns(seconds: Seconds, digits: int = 1) -> str:
    total, setup, call, teardown = (
        f"{value:.{digits}f}" for value in (sum(seconds.values()), *(seconds[phase] for phase in PHASES))
    )
    return f"{total:>8} {setup:>8} {call:>8} {teardown:>9}"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        _take_in(Path(argument).read_text().partition(EVERY)[2])
    print(f"\n{TITLE}\n{_write()}")
