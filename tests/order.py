"""Where several processes share the tests, the longest files come first (`-p tests.order`; docs/testing.md).

A process takes one file after the other (`--dist loadfile --no-loadscope-reorder`). With a long file as the last, the other
processes would have nothing to do for as long as the file takes.
"""

from collections import Counter
from pathlib import Path

import pytest

from tests.kinds import QUICK, kind_of

SECONDS = {"docker": 3.0, "browser": 6.0, "deployment": 4.0, "embedded": 2.0, QUICK: 0.1}  # of a usual test of the kind


@pytest.hookimpl(trylast=True)  # after `-m` has selected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the files; the tests of a file stay as they are."""
    if not hasattr(config, "workerinput"):  # a process of pytest-xdist has this
        return
    seconds: Counter[Path] = Counter()
    for item in items:
        seconds[item.path] += SECONDS[kind_of(item)]  # type: ignore[assignment]
    items.sort(key=lambda item: -seconds[item.path])
