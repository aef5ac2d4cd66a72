"""A Valkey on another host: everything that goes to it goes through TLS, to the server that the certificate names."""

import os
import secrets
from datetime import UTC, datetime, timedelta

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kombu import Connection
from kombu.exceptions import OperationalError

from tests import servers, waiting
from tests.conftest import make_product, running_stack
from tests.engines.backends import dock

PASSWORD = secrets.token_urlsafe(16)
START = """
printf '%s' "$CERTIFICATE" >/tmp/cert.pem; printf '%s' "$KEY" >/tmp/key.pem
exec redis-server --port 0 --tls-port 6379 --tls-cert-file /tmp/cert.pem --tls-key-file /tmp/key.pem --tls-auth-clients no \
    --requirepass "$PASSWORD" --save '' --dir /tmp
"""


def certify(name):
    """A key and a certificate for the host `name`, signed by itself, as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
    builder = builder.not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return secret, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a server with TLS on loopback whose certificate is for `localhost`, and the file of that certificate."""
    client = dock.connect()
    if not client.images.list("roundhouse-redis"):
        say = pytest.fail if os.environ.get("ORCH_REQUIRE_DOCKER") == "1" else pytest.skip
        say("no images of `make image`")
    key, certificate = certify("localhost")
    trusted = tmp_path_factory.mktemp("tls") / "ca.pem"
    trusted.write_text(certificate)
    port = servers.free_port()
    container = client.containers.run(
        "roundhouse-redis:7", ["sh", "-c", START], ports={"6379/tcp": ("127.0.0.1", port)}, detach=True,
        environment={"KEY": key, "CERTIFICATE": certificate, "PASSWORD": PASSWORD},
    )  # fmt: skip
    try:
        waiting.until(lambda: answers(f"rediss://:{PASSWORD}@localhost:{port}/0?ssl_ca_certs={trusted}"), 20, "it answers")
        yield port, trusted
    finally:
        container.remove(force=True)


def answers(url):
    """Whether our client of Valkey, made of the URL alone, reaches the server."""
    try:
        return redis.Redis.from_url(url, retry=None).ping()
    except redis.RedisError:
        return False


def celery_reaches(url):
    """Whether Celery's client does, with the settings that a process has for the URL."""
    try:
        secure = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        with Connection(url, ssl=secure, transport_options={"max_retries": 0}) as connection:
            connection.default_channel.client.ping()
    except (redis.RedisError, OperationalError, OSError):
        return False
    return True


def test_nobody_speaks_to_a_server_that_the_certificate_does_not_name(server):
    port, trusted = server
    reached = {
        f"rediss://:{PASSWORD}@localhost:{port}/0?ssl_ca_certs={trusted}": True,
        f"rediss://:{PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={trusted}": False,
        f"rediss://:{PASSWORD}@localhost:{port}/0": False,  # signed by an authority that this machine does not know
        f"rediss://:wrong@localhost:{port}/0?ssl_ca_certs={trusted}": False,
        f"redis://:{PASSWORD}@localhost:{port}/0": False,
    }
    assert {url: answers(url) for url in reached} == reached
    assert {url: celery_reaches(url) for url in reached if url.startswith("rediss")} == {
        url: is_reached for url, is_reached in reached.items() if url.startswith("rediss")
    }


def test_processes_do_all_their_work_through_tls(server, db):
    """Messages of Celery, announcements, log lines and counts."""
    port, trusted = server
    url = f"rediss://:{PASSWORD}@localhost:{port}/0?ssl_ca_certs={trusted}"
    product = make_product(policy={"rate_limit_rpm": 1})
    with running_stack(edition="small", ORCH_REDIS_URL=url, ORCH_ENGINE_BACKEND="memory") as stack:
        assert stack.call("POST", "/engines/provision", product.key, {"user_id": "alice"}).status_code == 200
        assert stack.call("GET", "/engines/alice/logs", product.key).status_code == 200
        assert [stack.call("POST", "/engines/alice/admit", product.key).status_code for _ in range(3)] == [200, 429, 429]
    client = redis.Redis.from_url(url)
    assert client.keys("LIMITS:*")
    assert client.keys("{refusals}/tally/*")
