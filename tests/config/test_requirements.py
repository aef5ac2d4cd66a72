"""What is installed is what is locked: what we ask for, and what that brings along, each by its hashes."""

import re
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from config.local.home import BASE_DIR

LOCKS = ["requirements", "requirements-local", "requirements-dev"]
ENTRY = re.compile(r"^([\w.-]+)==([^\s;]+)(?: ; (.*?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def asked(name: str) -> list[Requirement]:
    """What the file of requirements names, without the files that it takes in and our own client."""
    lines = [line.partition("#")[0].strip() for line in (BASE_DIR / f"{name}.txt").read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def locked(name: str) -> dict[str, str]:
    """Package → version of a lock for this machine, together with the lock that it takes in."""
    text = (BASE_DIR / f"{name}.lock").read_text()
    base = re.search(r"^-r (.*)\.lock$", text, re.MULTILINE)
    here = {
        entry[1]: entry[2] for entry in ENTRY.finditer(text) if not entry[3] or Requirement(f"x ; {entry[3]}").marker.evaluate()
    }
    return (locked(base[1]) if base else {}) | here


def brought(name: str, extras: frozenset[str] = frozenset()) -> set[tuple[str, frozenset[str]]]:
    """What the package, with these extras, needs on this machine."""
    needs = [Requirement(need) for need in distribution(name).requires or []]
    contexts = [{"extra": extra} for extra in (extras or {""})]
    applying = [need for need in needs if need.marker is None or any(map(need.marker.evaluate, contexts))]
    return {(canonicalize_name(need.name), frozenset(need.extras)) for need in applying}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_is_in_step_with_its_requirements_and_with_what_is_installed(name: str) -> None:
    """`make lock` brings it in step again."""
    files = LOCKS[: LOCKS.index(name) + 1]
    wanted = [each for file in files for each in asked(file)]
    lock = locked(name)
    assert {canonicalize_name(each.name): str(each.specifier) for each in wanted} == {
        canonicalize_name(each.name): f"=={lock[canonicalize_name(each.name)]}" for each in wanted
    }
    left, seen = {(canonicalize_name(each.name), frozenset(each.extras)) for each in wanted}, set()
    if name == "requirements-dev":
        left |= brought("roundhouse-client")
    while left:
        seen |= left
        left = {need for package in left for need in brought(*package)} - seen
    assert {package: distribution(package).version for package, _ in seen} == lock


@pytest.mark.parametrize("name", [*LOCKS, "bench/peers/requirements", "bench/peers/servers"])
def test_every_package_of_a_lock_has_hashes(name: str) -> None:
    """A line that is no package with its hashes is a comment, or takes in another lock."""
    rest = ENTRY.sub("", (BASE_DIR / f"{name}.lock").read_text())
    assert [line for line in rest.splitlines() if not re.fullmatch(r"#.*|-r requirements[a-z-]*\.lock", line)] == []
    assert len(ENTRY.findall((BASE_DIR / f"{name}.lock").read_text())) >= len(asked(name)) > 1


def test_packages_are_installed_by_their_hashes_wherever_they_are_installed() -> None:
    """Only our own client, which is a folder, is installed without."""
    for name in ("Makefile", "Dockerfile"):
        text = (BASE_DIR / name).read_text().replace("$(LOCKED)", "$(PIP) --require-hashes --only-binary :all:")
        installs = [
            line for line in text.splitlines() if re.search(r"\$\(PIP\)|pip install", line) and not line.startswith("LOCKED")
        ]
        assert len(installs) >= 1
        assert [line for line in installs if "--require-hashes --only-binary :all:" not in line and "./client" not in line] == []


def test_base_images_of_a_registry_are_named_by_their_digests() -> None:
    files = [path for path in BASE_DIR.rglob("Dockerfile") if not {".venv", ".local"} & set(path.parts)]
    bases = {path: re.findall(r"^ARG BASE_IMAGE=(.*)$", path.read_text(), re.MULTILINE) for path in files}
    assert len(bases) == 5
    assert {path: base for path, (base,) in bases.items() if not re.search(r"@sha256:[0-9a-f]{64}$", base)} == {}
    froms = {base for path in files for base in re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE)}
    assert froms == {"${BASE_IMAGE}"}
