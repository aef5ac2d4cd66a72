"""A thread counts as busy until its request is done, or until it stands aside, and never twice."""

import pytest

from common import busy_thread


def test_counted_leaves_once_whether_or_not_the_thread_stood_aside():
    left = []
    with busy_thread.counted(lambda: left.append("first")):
        assert left == []
    with busy_thread.counted(lambda: left.append("second")):
        busy_thread.stand_aside()
        assert left == ["first", "second"]
        busy_thread.stand_aside()
    busy_thread.stand_aside()
    assert left == ["first", "second"]


def test_counted_leaves_after_a_block_that_fails():
    left = []
    with pytest.raises(ValueError, match="inside"), busy_thread.counted(lambda: left.append("it")):
        raise ValueError("inside")
    assert left == ["it"]
