"""Turns: one computes at a time, and nobody waits for one that waits itself."""

import threading
import time

from engines import turns
from tests.engines.crew import in_parallel


def begin(hold):
    """A thread that has the turn, and calls `hold` with it."""
    has_it = threading.Event()

    def run():
        with turns.turn():
            has_it.set()
            hold()

    thread = threading.Thread(target=run)
    thread.start()
    assert has_it.wait(5)
    return thread


def seconds_until_my_turn():
    began = time.monotonic()
    with turns.turn():
        return time.monotonic() - began


def test_one_has_the_turn_at_a_time():
    inside, most = [], []

    def compute(_):
        with turns.turn():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()

    assert in_parallel(compute, range(8)) == [None] * 8
    assert max(most) == 1


def test_who_gives_it_up_is_waited_for_no_longer():
    over = threading.Event()
    other = begin(lambda: (turns.give_up(), over.wait(5)))
    waited_s = seconds_until_my_turn()
    over.set()
    other.join()
    assert waited_s < turns.LONGEST_S


def test_who_has_it_for_too_long_loses_it_and_takes_no_others_away():
    over = threading.Event()
    other = begin(lambda: over.wait(5))
    with turns.turn():
        over.set()
        other.join()  # ends its block: the turn is not its own any more
        assert turns._turn is not None
        assert turns._turn[0] == threading.get_ident()
    assert turns._turn is None


def test_give_up_without_the_turn_does_nothing():
    with turns.turn():
        mine = turns._turn
        assert in_parallel(lambda _: turns.give_up(), range(2)) == [None] * 2
        assert turns._turn == mine
