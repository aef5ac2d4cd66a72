"""What is installed is what is pinned: what we ask for, and what that brings along."""

import re
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from config.local.home import BASE_DIR


def pins(name: str) -> dict[str, str]:
    """Package → version, as a file of requirements has it, without those that it takes in."""
    lines = [line.partition("#")[0].strip() for line in (BASE_DIR / name).read_text().splitlines()]
    found = [re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", line) for line in lines if line and not line.startswith("-")]
    return {canonicalize_name(pin[1]): pin[2] for pin in found if pin}


def brought(name: str, extras: frozenset[str] = frozenset()) -> set[tuple[str, frozenset[str]]]:
    """What the package, with these extras, needs on this machine."""
    needs = [Requirement(need) for need in distribution(name).requires or []]
    contexts = [{"extra": extra} for extra in (extras or {""})]
    applying = [need for need in needs if need.marker is None or any(map(need.marker.evaluate, contexts))]
    return {(canonicalize_name(need.name), frozenset(need.extras)) for need in applying}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-local.txt", "requirements-dev.txt"])
def test_all_that_is_installed_is_pinned(name: str) -> None:
    constraints = pins("constraints.txt")
    asked = [Requirement(line.partition("#")[0]) for line in (BASE_DIR / name).read_text().splitlines() if re.match(r"\w", line)]
    assert len(asked) == len(pins(name)) > 2
    left, seen = {(canonicalize_name(want.name), frozenset(want.extras)) for want in asked}, set()
    while left:
        seen |= left
        left = {need for package in left for need in brought(*package)} - seen
    installed = {package: distribution(package).version for package, _ in seen}
    assert installed == {package: constraints.get(package) for package in installed}


def test_constraints_are_in_force_wherever_requirements_are_installed() -> None:
    assert "\n-c constraints.txt" in (BASE_DIR / "requirements.txt").read_text()
    assert "\n-r requirements.txt" in (BASE_DIR / "requirements-local.txt").read_text()
    assert "\n-r requirements-local.txt" in (BASE_DIR / "requirements-dev.txt").read_text()
    assert "COPY requirements.txt constraints.txt" in (BASE_DIR / "Dockerfile").read_text()
