import pytest

from common import ip_addresses


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:DB8::0007", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("", None),
        ("localhost", None),
        ("203.0.113.7:8000", None),
        ("203.0.113.0/24", None),
        ("/run/web.sock", None),
    ],
)
def test_parse_gives_an_address_or_nothing(text, parsed):
    assert ip_addresses.parse(text) == parsed


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
    ],
)
def test_owner_of_an_ipv6_address_is_its_network(peer, address):
    assert ip_addresses.owner(peer) == address
