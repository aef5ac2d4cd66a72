"""The gate: one at a time, and nobody queues behind one that is stuck."""

import time

import pytest

from engines.admission.gate import PATIENCE_S, SHORT_PATIENCE_S, Gate
from engines.errors import Crowded
from tests.engines.crew import in_parallel


def test_one_of_a_key_is_in_at_a_time():
    gate, inside, most = Gate(8), [], []

    def pass_through(_):
        with gate.enter("a"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()

    assert in_parallel(pass_through, range(8)) == [None] * 8
    assert max(most) == 1


def test_another_key_does_not_wait():
    gate, began = Gate(2), time.monotonic()
    with gate.enter("a"), gate.enter("b"):
        assert time.monotonic() - began < PATIENCE_S


@pytest.mark.parametrize("key", ["a", "c"])
def test_no_one_waits_for_long_behind_one_that_is_stuck(key):
    """For the same key, nor for a place when all are taken; and what is refused leaves no trace."""
    gate = Gate(2)
    with gate.enter("a"), gate.enter("b"):
        began = time.monotonic()
        with pytest.raises(Crowded), gate.enter(key):
            pass
        assert time.monotonic() - began < 2 * PATIENCE_S
        began = time.monotonic()
        with pytest.raises(Crowded), gate.enter(key):
            pass
        assert time.monotonic() - began < PATIENCE_S / 2
    with gate.enter("a"), gate.enter("c"):
        pass


def test_short_patience_is_over_sooner():
    gate = Gate(2)
    with gate.enter("a"):
        began = time.monotonic()
        with pytest.raises(Crowded), gate.enter("a", SHORT_PATIENCE_S):
            pass
        assert time.monotonic() - began < PATIENCE_S / 2


def test_who_fails_inside_makes_room():
    gate = Gate(1)
    with pytest.raises(ValueError, match="inside"), gate.enter("a"):
        raise ValueError("inside")
    with gate.enter("b"), pytest.raises(Crowded), gate.enter("c"):
        pass
