from threading import Thread
from uuid import uuid4

from common import context
from common.context import Call


def test_call_is_restored_after_a_block():
    context.enter(None)
    outer, inner = Call(uuid4(), "outer"), Call(uuid4(), "inner")
    with context.of_call(outer):
        with context.of_call(inner):
            context.identify(uuid4(), "ci")
            assert context.current()[:2] == inner[:2]
            assert context.current().key_name == "ci"
        assert context.current() == outer
    assert context.known() is None


def test_call_without_a_request_lasts_for_its_thread():
    context.enter(None)
    assert context.known() is None
    mine = context.current()
    assert context.current() == context.known() == mine
    others = []
    thread = Thread(target=lambda: others.append(context.current()))
    thread.start()
    thread.join()
    assert others[0].call_id != mine.call_id
    context.enter(None)


def test_request_begins_a_call_of_its_own():
    with context.of_request("r-1"):
        first = context.current()
    with context.of_request("r-1"):
        second = context.current()
    assert first.request_id == second.request_id == "r-1"
    assert first.call_id != second.call_id
