"""Which image the Docker backend makes an instance of: one that has the name asked for, whatever the daemon answers."""

import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingUnixStreamServer
from uuid import uuid4

import docker
import pytest

from engines.backends.base import ImageMismatch, ImageMissing, State
from engines.backends.docker import Options
from tests.engines.backends import dock
from tests.engines.backends.runtimes import IMAGE, spec


@pytest.fixture
def named(client):
    """The demo engine's image under one more name."""
    name = f"roundhouse-test/{uuid4().hex}"
    client.images.get(IMAGE).tag(name, "1")
    yield f"{name}:1"
    client.images.remove(f"{name}:1")


def test_resolve_takes_every_way_to_write_the_name(client, docked, named):
    digest = client.images.get(IMAGE).id
    for image in (named, f"docker.io/{named}", f"index.docker.io/{named}", digest):
        assert docked.resolve(image) == digest
    assert docked.resolve(IMAGE.partition(":")[0]) == digest
    assert docked.resolve("no-such-image:1", digest) == digest


def test_create_finds_no_image_by_the_digits_of_its_id(client, docked):
    digits = client.images.get(IMAGE).id.removeprefix("sha256:")
    for image in (f"{digits[:12]}:latest", f"{digits}:latest", f"acme/{digits[:12]}"):
        with pytest.raises(ImageMissing):
            docked.create(spec(image=image))


class _Mixed(BaseHTTPRequestHandler):
    """A daemon that answers a question about an image with `given`, and all others as the real daemon does."""

    real: docker.APIClient
    given = ""

    def do_GET(self):
        path = self.path.partition("/images/")[0] + f"/images/{self.given}/json" if "/images/" in self.path else self.path
        answer = self.real._get(f"{self.real.base_url}{path}")
        self.send_response(answer.status_code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def address_string(self):
        return "unix"  # a Unix socket has no address to log

    def log_message(self, *_):
        pass


@pytest.fixture
def mixed(client, tmp_path):
    """A backend on a daemon that mixes images up."""
    handler = type("Handler", (_Mixed,), {"real": client.api})
    with ThreadingUnixStreamServer(str(tmp_path / "d.sock"), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with dock.deployed(client, url=f"unix://{tmp_path}/d.sock") as backend:
            yield backend, handler
        server.shutdown()


def test_create_makes_no_container_when_the_daemon_answers_with_another_image(client, mixed):
    backend, daemon = mixed
    digest, other = client.images.get(IMAGE).id, client.images.get(Options.guard_image).id
    daemon.given = IMAGE
    assert backend.resolve(IMAGE) == backend.resolve(digest) == digest
    daemon.given = Options.guard_image
    for image, kept in ((IMAGE, ""), (digest, ""), (IMAGE, digest), (f"roundhouse-guard@{other}", ""), ("acme/agent:1", "")):
        wanted = spec(image=image)
        with pytest.raises(ImageMismatch, match=other) as raised:
            backend.resolve(image, kept)
        assert (raised.value.code, raised.value.retryable) == ("image_mismatch", False)
        with pytest.raises(ImageMismatch):
            backend.create(wanted)
        assert backend.observe(wanted.ref) is State.ABSENT
    assert backend.list() == []
