"""How many random examples a property is tried with: all, or a fifth in a run that repeats the tests on another server."""

import os


def number(usual: int) -> int:
    """With TEST_EXAMPLES=few a fifth; `make test-postgres` sets it."""
    return usual // 5 if os.environ.get("TEST_EXAMPLES") == "few" else usual
