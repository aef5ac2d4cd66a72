"""Kinds of tests, by what they need: their marks are found here, and enforced (`-p tests.kinds`; docs/testing.md).

A helper or a fixture says what it needs, and a helper looks at the test that calls it:

    @needs("deployment")
    class Stack:
        def __init__(self):
            require("deployment")

A test gets the mark if it uses such a fixture, directly or through others, or if its code or a fixture's names such a helper.
So does the case of a test whose parameter is the name of a kind: `[docker]`. A test whose way to the helper is longer is marked
by hand: `@pytest.mark.deployment`.
"""

from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any, TypeVar

import pytest

KINDS = {
    "docker": "a container",
    "browser": "a browser",
    "deployment": "processes of a deployment",
    "embedded": "embedded servers of its own",
    "sql": "the run's PostgreSQL",
}
SLOW = ("docker", "browser", "deployment", "embedded")  # a test's time is counted for the first that it is
QUICK = "quick"  # the name of all other tests

T = TypeVar("T")
_running: list[pytest.Item] = []  # one, while a test is set up, called or torn down


def needs(*kinds: str) -> Callable[[T], T]:
    """Declare what a helper needs, or below `@pytest.fixture` a fixture."""

    def declare(helper: T) -> T:
        helper.kinds = kinds  # type: ignore[attr-defined]
        return helper

    return declare


def require(kind: str) -> None:
    """Fail the test that runs just now unless it has the mark."""
    for item in _running:
        if not item.get_closest_marker(kind):
            pytest.fail(
                f"{item.nodeid} needs {KINDS[kind]} and does not say so: mark it with @pytest.mark.{kind} (docs/testing.md)",
                pytrace=False,
            )


def kind_of(item: pytest.Item) -> str:
    """The kind for which a test's time is counted."""
    return next((kind for kind in SLOW if item.get_closest_marker(kind)), QUICK)


def pytest_configure(config: pytest.Config) -> None:
    for kind, what in KINDS.items():
        config.addinivalue_line("markers", f"{kind}: needs {what}")
    config.addinivalue_line("markers", "alone: holds processes of a deployment to a time, and so needs the machine for itself")
    config.addinivalue_line(
        "markers", "daemon: restarts the machine's Docker daemon, or takes all its networks: no test of Docker beside it"
    )


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with what it and its fixtures need."""
    found: dict[Any, set[str]] = {}  # by function: many tests share a fixture
    for item in items:
        kinds = _chosen(item)
        for function in _functions(item):
            if function not in found:
                found[function] = {kind for helper in (function, *_named(function)) for kind in _declared(helper)}
            kinds |= found[function]
        for kind in sorted(kinds):
            item.add_marker(kind)


def _chosen(item: pytest.Item) -> set[str]:
    """A parameter with the name of a kind: `[docker]`."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {value for value in parameters if isinstance(value, str) and value in KINDS}


def _functions(item: pytest.Item) -> Iterator[Any]:
    """The test's function and those of its fixtures. The last of several fixtures of one name counts: it overrides the others."""
    if isinstance(item, pytest.Function):
        yield item.function
        yield from (definitions[-1].func for definitions in item._fixtureinfo.name2fixturedefs.values())


def _named(function: Any) -> Iterator[Any]:
    """What a function's code names of its module, and of modules imported there: `Stack` and `dock.connect`."""
    code = getattr(function, "__code__", None)
    names = set(_names(code)) if code else set()
    for value in [function.__globals__[name] for name in names if name in function.__globals__]:
        yield value
        if isinstance(value, ModuleType):
            yield from (vars(value)[name] for name in names if name in vars(value))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _declared(helper: Any) -> tuple[str, ...]:
    """Only what `needs` has put there: settings and mocks answer to any name."""
    kinds = getattr(helper, "__dict__", {}).get("kinds", ())
    return kinds if isinstance(kinds, tuple) else ()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    _running.append(item)
    try:
        return (yield)
    finally:
        _running.remove(item)
