"""A run of pytest within a test: our plugins, on a folder of a few tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(folder: Path, code: str, *arguments: str, **environment: str) -> str:
    """What the run prints. The tests are the file `test_it.py`; the project's own settings of pytest do not count."""
    (folder / "test_it.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(folder), "-p", "tests.kinds", *arguments]
    # Without the plugins of installed packages, whose imports take ten times as long as such a run.
    fixed = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TEST_TIMES": str(folder / "times.txt"), "COLUMNS": "200"}
    return subprocess.run(
        [*command, str(folder)], cwd=ROOT, env={**os.environ, **fixed, **environment}, capture_output=True, text=True, timeout=60
    ).stdout
