"""`make check` runs every check and `make test` every test, also when one fails, and both say what failed."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = (
    '#!/bin/sh\nwords=$(echo "$(basename "$0")" "$@")\necho "ran $words" >>ran\ncase "$words" in *"$FAILS"*) exit 1 ;; esac\n'
)
CHECKS = {
    "check-format": "ruff format --check",
    "check-lint": "ruff check",
    "check-types": "mypy .",
    "check-imports": "lint-imports",
    "check-processes": "python -m config.processes procfile --check",
    "check-migrations": "python manage.py makemigrations --check --dry-run",
    "check-documents": "python manage.py generate_docs --check",
    "check-words": "python scripts/pointing-words --at-most 4.5",
    "check-deployment": "python manage.py check --deploy --fail-level WARNING",
}


@pytest.fixture
def checkout(tmp_path):
    """A folder with our Makefile, and an environment of programs that only say what they were asked."""
    for name in ("Makefile", "requirements.lock", "requirements-local.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "ruff", "mypy", "lint-imports"):
        (programs / name).write_text(SCRIPT)
        (programs / name).chmod(0o755)
    for stamp in (".made", ".local", ".dev"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


def make(checkout, fails, *arguments):
    command = ["make", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "FAILS": fails}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)
    return done, (checkout / "ran").read_text().splitlines()


def test_check_runs_every_check(checkout):
    done, ran = make(checkout, "nothing", "check")
    assert done.returncode == 0, done.stderr
    assert {f"ran {words}" for words in CHECKS.values()} <= set(ran)


@pytest.mark.parametrize("name", CHECKS)
def test_check_names_what_failed_and_runs_the_rest(checkout, name):
    done, ran = make(checkout, CHECKS[name], "check")
    assert done.returncode != 0
    assert [other for other in CHECKS if f"{other}] Error" in done.stderr] == [name]
    assert {f"ran {words}" for words in CHECKS.values()} <= set(ran)


SHARED = "--dist loadfile --no-loadscope-reorder"
RUNS = {
    "quick": f"python -m pytest -n 3 {SHARED} -m not (docker or browser or deployment or embedded)",
    "apart": "python -m pytest -m (daemon or browser) and not alone",
    "slow": f"python -m pytest -n 4 {SHARED} -m (docker or deployment or embedded) and not (daemon or browser or alone)",
    "alone": "python -m pytest -m alone",
}


@pytest.mark.parametrize("fails", ["", *RUNS])
def test_test_runs_every_kind_and_says_which_has_failed(checkout, fails):
    (checkout / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "test", checkout / "scripts")
    done, ran = make(checkout, RUNS.get(fails, "nothing"), "test")
    assert sorted(ran[:2]) == sorted(f"ran {RUNS[part]}" for part in ("quick", "apart"))
    assert ran[2:4] == [f"ran {RUNS[part]}" for part in ("slow", "alone")]
    assert ran[4].startswith("ran python -m tests.durations")
    assert (done.returncode == 0) == (not fails)
    assert [line for line in done.stderr.splitlines() if "have failed" in line] == (
        [f"Tests have failed, see above: {fails}"] if fails else []
    )


def test_test_runs_a_part_of_the_tests_in_one_process(checkout):
    _, ran = make(checkout, "nothing", "test", "ARGS=tests/engines -k rotate")
    assert ran == ["ran python -m pytest tests/engines -k rotate"]
