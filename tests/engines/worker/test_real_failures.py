"""Failures of real runtimes: the product learns what happened and what to do, and staff and the log learn the whole."""

import contextlib
import html
import json
import socket
from uuid import uuid4

import pytest

from engines import backends, causes, log_mailbox, worker
from engines.backends.docker import DockerBackend
from engines.models import Operation
from policy.models import Product
from tests import servers
from tests.conftest import engines_on
from tests.envelopes import assert_error
from tests.staff import log_in

MISSING = "acme/nowhere:1"


def ask(api, image="", **headers):
    """Ask for alice's engine, always under one key."""
    body = {"user_id": "alice", **({"engine_version": image} if image else {})}
    return api.call("POST", "/engines/provision", body, **{"Idempotency-Key": "one"}, **headers)


@pytest.fixture
def provision(db, api, product, carry_out):
    """Asks for an engine of an image, has one attempt made, and returns the operation as it is then."""
    Product.objects.filter(pk=product.pk).update(policy={"images": ["*"]})

    def attempt(image=""):
        ask(api, image, Prefer="respond-async")
        return carry_out(Operation.objects.get())

    return attempt


def told(api, operation, answer):
    """All that the product can be told of the operation, as one text."""
    paths = (f"/operations/{operation.pk}", "/engines", "/engines/alice", "/engines/alice/audit", "/audit", "/status", "/metrics")
    answers = [answer, api.call("POST", "/engines/alice/admit", {"auto_provision": True}), *(api.get(path) for path in paths)]
    asked = {"verb": "start", "user_id": "alice"}
    return "\n".join(each.text for each in (*answers, api.call("POST", "/policy/explain", asked)))


def assert_whole_is_for_staff(api, operation, answer, cause, *words):
    """`words` are the runtime's: on the page of staff, and in nothing that the product is told."""
    assert operation.error_code == cause
    assert answer.json()["error"]["message"] == causes.sentence(cause)
    assert api.get(f"/operations/{operation.pk}").json()["error"] == {"code": cause, "message": causes.sentence(cause)}
    shown = told(api, operation, answer)
    page = html.unescape(log_in("sam").get(f"/admin/engines/operation/{operation.pk}/change/").text)
    for word in words:
        assert word in operation.error_message
        assert word in page
        assert word not in shown
    for word in ("Errno", "Traceback", "docker", str(servers.HOME), json.dumps(operation.error_message)[1:60]):
        assert word not in shown


def test_folder_that_cannot_be_written_is_told_to_staff_alone(provision, api, carry_out, superuser, tmp_path, settings):
    blocked = tmp_path / "engines"
    blocked.write_text("not a folder")
    with engines_on("subprocess"), contextlib.ExitStack() as afterwards:
        afterwards.callback(blocked.unlink)
        settings.ENGINES_ROOT = blocked
        settings.ENV = settings.ENV.model_copy(update={"operation_give_up_s": 0.001})
        provision()
        superuser.execute("UPDATE engines_operation SET due_at = now()")
        operation = carry_out(Operation.objects.get())
        answer = ask(api)
        assert_error(answer, 503, "UNAVAILABLE")
        assert_whole_is_for_staff(api, operation, answer, "backend_unavailable", str(tmp_path), "Not a directory")
        token = uuid4()
        worker.hand_over(operation.engine_id, 10, token)
        assert log_mailbox.take(token, operation.engine_id) == {"error": "backend_unavailable"}


def test_image_that_a_process_cannot_be_made_of_is_told_to_staff_alone(engine_processes, provision, api):
    operation = provision(MISSING)
    answer = ask(api, MISSING)
    assert_error(answer, 502, "BACKEND_ERROR")
    assert_whole_is_for_staff(api, operation, answer, "image_missing", "engines' host has no image of this name")


def test_port_in_use_is_told_to_staff_alone(engine_processes, provision, api, settings):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        settings.ENV = settings.ENV.model_copy(update={"port_min": port, "port_max": port})
        operation = provision()
    answer = ask(api)
    assert_error(answer, 503, "PORT_EXHAUSTION")
    assert_whole_is_for_staff(api, operation, answer, "port_exhaustion")


@pytest.mark.docker
def test_image_that_the_daemon_lacks_is_told_to_staff_alone(provision, api):
    with engines_on("docker"):
        assert isinstance(backends.get(), DockerBackend)
        operation = provision(MISSING)
        answer = ask(api, MISSING)
        assert_error(answer, 502, "BACKEND_ERROR")
        assert_whole_is_for_staff(api, operation, answer, "image_missing", "engines' host has no image of this name")
