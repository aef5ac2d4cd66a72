"""Whatever somebody puts into our queues, a worker goes on, believes nothing of it, and is not controlled by it."""

import base64
import contextlib
import json
import pickle
import tempfile
from uuid import uuid4

import pytest

from audit import actors
from audit.models import AuditRow
from common import valkey
from config.celery import app
from engines import lifecycle
from engines.models import Operation, OperationState
from tests import waiting
from tests.conftest import engines_on, make_product
from tests.freezing import freeze_at_rest
from tests.stack import Stack


class Touch:
    """When unpickled, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def message(body=b"[[], {}, {}]", *, content_type="application/json", **headers):
    """A message as kombu writes them."""
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8" if content_type == "application/json" else "binary",
            "content-type": content_type,
            "headers": {"lang": "py", "task": "engines.tasks.dispatch", "id": str(uuid4()), **headers},
            "properties": {
                "body_encoding": "base64",
                "correlation_id": str(uuid4()),
                "delivery_info": {"exchange": "", "routing_key": "lifecycle"},
                "delivery_mode": 2,
                "delivery_tag": str(uuid4()),
            },
        }
    )


def run_operation(*arguments, **headers):
    return message(json.dumps([arguments, {}, {}]).encode(), task="engines.tasks.run_operation", **headers)


def without(part):
    made = json.loads(message())
    del made[part]
    return json.dumps(made)


def strange(tmp_path):
    """Entries of a queue that no process of ours has put there."""
    return [
        "not JSON", b"\xff\xfe", "", "1", "null", "[]", "{}", '"text"', "[" * 100_000,
        without("properties"), without("headers"), without("body"), without("content-type"),
        json.dumps({**json.loads(message()), "headers": ["a", "list"]}),
        json.dumps({**json.loads(message()), "headers": None}),
        json.dumps({**json.loads(message()), "body": 5}),
        json.dumps({**json.loads(message()), "properties": {}}),
        message(b"not JSON"), message(b'{"no": "list"}'), message(b"[]"), message(b"null"),
        message(pickle.dumps([(), {}, {}]), content_type="application/x-python-serialize"),
        message(pickle.dumps([Touch(tmp_path / "touched"), {}, {}]), content_type="application/x-python-serialize"),
        message(task="no.such.task"), message(task=None), message(task=["a"]), message(task={"a": 1}),
        message(task="os.system"), message(id=None), message(id={"a": 1}), message(retries="x"),
        message(task="celery.starmap"), message(eta="2999-01-01T00:00:00+00:00"),
        message(eta="x"), message(eta=5), message(expires="x"), message(expires=[]), message(timelimit="x"),
        message(request_id={"a": 1}), message(request_id="x" * 1000), message(request_id="a b\n"),
        run_operation(), run_operation("not an id"), run_operation(None), run_operation({"a": 1}), run_operation("x", "y"),
        run_operation(str(uuid4()), request_id="forged"),
    ]  # fmt: skip


@pytest.fixture
def stack(db):
    with engines_on("memory"), contextlib.closing(Stack("small", ORCH_ENGINE_BACKEND="memory", ORCH_LOG_LEVEL="INFO")) as stack:
        stack.start("worker")
        waiting.until(lambda: "worker_ready" in stack.log("worker"), 30, "the worker is ready")
        yield stack


def provision(product, user_id):
    """An engine that the worker brings up."""
    operation = lifecycle.provision(product, user_id, by=actors.product(product.slug))
    waiting.until(lambda: Operation.objects.get(pk=operation.pk).state == OperationState.SUCCEEDED, 30, "the engine runs")
    return operation


def test_worker_goes_on_whatever_is_in_its_queues(stack, tmp_path):
    product, client, pid = make_product(), valkey.client(), stack.pid("worker")
    for entry in strange(tmp_path):
        client.lpush("lifecycle", entry)
    waiting.until(lambda: client.llen("lifecycle") == 0, 20, "all is taken")
    provision(product, "alice")
    for queue in ("lifecycle", "lifecycle\x06\x163", "health", "_kombu.binding.lifecycle", "unacked", "unacked_index"):
        client.delete(queue)
        client.set(queue, "not a list")
    provision(product, "bob")
    app.control.broadcast("shutdown")
    app.control.broadcast("cancel_consumer", arguments={"queue": "lifecycle"})
    provision(product, "carol")
    assert stack.pid("worker") == pid
    assert not (tmp_path / "touched").exists()
    for reason in ("not a task of ours: celery.starmap", "no task of ours waits in a worker"):
        assert reason in stack.log("worker")
    assert not AuditRow.objects.filter(request_id="forged").exists()


def test_row_has_the_request_of_its_operation_and_not_of_its_message(stack):
    product, client = make_product(), valkey.client()
    frozen = freeze_at_rest(stack, "worker")
    operation = lifecycle.provision(product, "alice", by=actors.product(product.slug))
    client.delete("lifecycle")
    client.lpush("lifecycle", run_operation(str(operation.pk), request_id="forged"))
    stack.thaw(frozen)
    waiting.until(lambda: AuditRow.objects.filter(action="provision").exists(), 30, "the engine runs")
    assert not AuditRow.objects.exclude(request_id=None).exists()


def test_messages_that_valkey_does_not_take_back_are_in_no_file_and_no_error(database, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with app.connection_for_read() as connection:
        held = connection.default_channel.qos
        held.append(object(), "no message at all, so that nothing can put it back")
        held.restore_unacked_once()
    assert list(tmp_path.iterdir()) == []
    assert [record.levelname for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
