"""Processes that share the tests take the longest files first, and take turns where the machine has one of something."""

import multiprocessing
from pathlib import Path
from types import SimpleNamespace

from tests import order, turns, waiting


class Item:
    """A test as far as its order goes."""

    def __init__(self, file, *marks):
        self.path, self.marks = Path(file), marks

    def get_closest_marker(self, name):
        return name in self.marks


def test_longest_files_come_first_and_stay_whole():
    items = [Item("quick"), Item("compose", "docker"), Item("quick"), *[Item("launch", "deployment")] * 3]
    order.pytest_collection_modifyitems(SimpleNamespace(workerinput={}), items)
    assert [str(item.path) for item in items] == ["launch"] * 3 + ["compose"] + ["quick"] * 2


def test_files_keep_their_order_where_one_process_has_all_tests():
    items = [Item("quick"), Item("compose", "docker")]
    order.pytest_collection_modifyitems(SimpleNamespace(), items)
    assert [str(item.path) for item in items] == ["quick", "compose"]


def _have_it(taken, done):
    with turns.alone("test"):
        taken.set()
        done.wait(10)


def test_process_waits_for_its_turn():
    context = multiprocessing.get_context("fork")
    taken, done, second = context.Event(), context.Event(), context.Event()
    holder = context.Process(target=_have_it, args=(taken, done))
    holder.start()
    assert taken.wait(10)
    waiter = context.Process(target=_have_it, args=(second, done))
    waiter.start()
    waiting.until(lambda: _waits_for_a_lock(waiter.pid), 10, "the second process waits")
    assert not second.is_set()
    done.set()
    holder.join()
    waiter.join()
    assert second.is_set()


def _waits_for_a_lock(pid):
    return any(line.split()[1:2] == ["->"] and f" {pid} " in line for line in Path("/proc/locks").read_text().splitlines())
