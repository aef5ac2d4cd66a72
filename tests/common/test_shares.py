"""Shares of places: one owner never takes all from the others, and every place comes back."""

import threading
import time

import pytest

from common.shares import RETURN_S, LentPlaces, ReservedPlaces
from tests import waiting


def fill(places, owner):
    """Take all the places that the owner gets; how many."""
    count = 0
    while places.take(owner):
        count += 1
    return count


# -- places that are kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "reserve", "most"), [(16, 4, 12), (8, 2, 6), (4, 1, 3), (60, 5, 55), (2, 1, 1), (1, 1, 1)])
def test_greedy_owner_leaves_the_reserve(count, reserve, most):
    assert fill(ReservedPlaces(count, reserve), "a") == most


def test_every_owner_gets_a_place_beside_greedy_owners():
    places = ReservedPlaces(16, 4)
    assert [fill(places, owner) for owner in "abcd"] == [12, 3, 1, 0]


def test_places_that_a_greedy_owner_gives_back_are_for_others():
    places = ReservedPlaces(16, 4)
    assert [fill(places, owner) for owner in "ab"] == [12, 3]
    for _ in range(6):
        places.give_back("a")
    assert [fill(places, owner) for owner in "ba"] == [4, 0]


def test_place_comes_back_from_a_block_that_fails():
    places = ReservedPlaces(1, 1)
    with pytest.raises(ValueError, match="inside"), places.hold("a") as is_held:
        raise ValueError(f"inside: {is_held}")
    with places.hold("a") as is_held, places.hold("b") as is_held_too:
        assert (is_held, is_held_too) == (True, False)
    assert places.take("b")


# -- places that are lent ----------------------------------------------------------------------------------------------------


def serve(place):
    """Hold the place until it is called back, as a waiting request does; the thread."""

    def hold():
        waiting.until(lambda: place.is_called_back, 10)
        place.give_back()

    thread = threading.Thread(target=hold)
    thread.start()
    return thread


def test_owner_who_is_alone_has_all_places():
    places = LentPlaces(3)
    taken = [places.take("a") for _ in range(4)]
    assert taken[:3] == [place for place in taken if place]
    assert not any(place.is_called_back for place in taken[:3])


def test_owner_with_the_most_places_gives_its_last_place_to_another():
    places = LentPlaces(4)
    held = {owner: [places.take(owner) for _ in range(count)] for owner, count in (("a", 3), ("b", 1))}
    thread = serve(held["a"][2])
    assert places.take("c").owner == "c"
    thread.join()
    assert [place.is_called_back for place in (*held["a"], *held["b"])] == [False, False, True, False]
    assert places.take("a") is None  # two, one and one: nobody has two more than another


def test_even_owners_keep_their_places():
    places = LentPlaces(2)
    held = [places.take(owner) for owner in "ab"]
    began = time.monotonic()
    assert places.take("a") is places.take("c") is None
    assert time.monotonic() - began < RETURN_S / 2
    assert not any(place.is_called_back for place in held)


def test_place_that_is_given_back_goes_to_the_owner_it_was_called_back_for():
    places = LentPlaces(2)
    first, last = places.take("a"), places.take("a")
    got = []
    asking = threading.Thread(target=lambda: got.append(places.take("b")))
    asking.start()
    waiting.until(lambda: last.is_called_back, 5)
    last.give_back()
    assert places.take("a") is None
    asking.join()
    assert got[0].owner == "b"
    first.give_back()
    assert places.take("a")


def test_owner_gives_up_when_no_place_comes_back_in_time():
    places = LentPlaces(2)
    first, last = places.take("a"), places.take("a")
    assert places.take("b") is None
    last.give_back()
    assert places.take("c")  # nobody is promised the place any more
    began = time.monotonic()
    assert places.take("a", wait_s=0.2) is None
    assert time.monotonic() - began < RETURN_S
    first.give_back()


def test_no_place_is_lent_where_there_is_none():
    began = time.monotonic()
    assert LentPlaces(0).take("a", wait_s=5) is None
    assert time.monotonic() - began < 1
