"""The permit to compute: one computes at a time, and nobody waits for one that waits itself."""

import threading
import time

from common import compute_permit
from tests.engines.crew import in_parallel


def begin(hold):
    """A thread that holds the permit, and calls `hold` with it."""
    has_it = threading.Event()

    def run():
        with compute_permit.held():
            has_it.set()
            hold()

    thread = threading.Thread(target=run)
    thread.start()
    assert has_it.wait(5)
    return thread


def seconds_until_mine():
    began = time.monotonic()
    with compute_permit.held():
        return time.monotonic() - began


def test_one_holds_the_permit_at_a_time():
    inside, most = [], []

    def compute(_):
        with compute_permit.held():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()

    assert in_parallel(compute, range(8)) == [None] * 8
    assert max(most) == 1


def test_who_gives_it_up_is_waited_for_no_longer():
    over = threading.Event()
    other = begin(lambda: (compute_permit.release(), over.wait(5)))
    waited_s = seconds_until_mine()
    over.set()
    other.join()
    assert waited_s < compute_permit.LONGEST_S


def test_who_has_it_for_too_long_loses_it_and_takes_no_others_away():
    over = threading.Event()
    other = begin(lambda: over.wait(5))
    with compute_permit.held():
        over.set()
        other.join()  # ends its block: the permit is not its own any more
        assert compute_permit._holder is not None
        assert compute_permit._holder[0] == threading.get_ident()
    assert compute_permit._holder is None


def test_release_without_the_permit_does_nothing():
    with compute_permit.held():
        mine = compute_permit._holder
        assert in_parallel(lambda _: compute_permit.release(), range(2)) == [None] * 2
        assert compute_permit._holder == mine
