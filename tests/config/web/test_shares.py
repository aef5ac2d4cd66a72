"""What one address may hold of the web server."""

import pytest

from config.web import shares
from config.web.shares import Shares

PROXY = "10.0.0.1"


@pytest.fixture
def counted():
    return Shares(2, lambda address: address == PROXY)


def test_enter_refuses_the_connection_above_the_limit_of_its_address_alone(counted):
    assert [counted.enter("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert counted.enter("192.0.2.2")
    counted.leave("192.0.2.1")
    assert counted.enter("192.0.2.1")


def test_enter_takes_any_number_of_connections_of_a_trusted_proxy(counted):
    assert all(counted.enter(PROXY) for _ in range(100))


def test_hold_refuses_more_bytes_than_the_share_of_an_address(counted):
    large = shares.PER_ADDRESS // 4 + shares.FREE
    assert [counted.hold("192.0.2.1", large, 0) for _ in range(5)] == [True, True, True, True, False]
    assert counted.hold("192.0.2.2", large, 0)
    counted.hold("192.0.2.1", 0, large)
    counted.hold("192.0.2.1", 0, large)
    assert counted.hold("192.0.2.1", large, 0)


def test_hold_lets_every_connection_hold_little_whatever_others_hold(counted):
    counted.hold("192.0.2.1", shares.PER_ADDRESS * 2, 0)
    assert counted.hold("192.0.2.1", shares.FREE, 0)


def test_hold_refuses_a_proxy_only_what_no_address_may_hold(counted):
    assert counted.hold(PROXY, shares.ALTOGETHER, 0)
    assert not counted.hold(PROXY, shares.ALTOGETHER, 0)
