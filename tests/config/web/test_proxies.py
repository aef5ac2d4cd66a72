"""Whose word counts about a client's address and scheme."""

import pytest

from config.web import proxies


@pytest.fixture
def trusted(settings):
    settings.ENV = settings.ENV.model_copy(update={"trusted_proxies": "10.0.0.0/8, 2001:db8::1"})


def believed(peer, forwarded, scheme="https"):
    environ = {"REMOTE_ADDR": peer, "HTTP_X_FORWARDED_FOR": forwarded, "HTTP_X_FORWARDED_PROTO": scheme}
    proxies.believe(environ)
    return environ["REMOTE_ADDR"], environ.get("HTTP_X_FORWARDED_PROTO")


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("::ffff:10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "198.51.100.1, 192.0.2.7 ,10.0.0.2", "192.0.2.7"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "::ffff:192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "192.0.2.7, nonsense", "10.0.0.1"),
    ],
)
def test_believe_takes_the_last_address_that_is_no_proxy(trusted, peer, forwarded, address):
    assert believed(peer, forwarded) == (address, "https")


@pytest.mark.parametrize("peer", ["192.0.2.1", "11.0.0.1", "2001:db8::2"])
def test_believe_ignores_the_headers_of_a_stranger(trusted, peer):
    assert believed(peer, "203.0.113.9") == (peer, None)


def test_believe_ignores_all_such_headers_while_no_proxy_is_trusted():
    assert believed("127.0.0.1", "203.0.113.9") == ("127.0.0.1", None)
