"""Engines and operations put straight into the registry, where a test is about nothing but what is asked of them there."""

import itertools
from uuid import uuid4

from django.db.models.functions import Now

from engines.models import Engine, Host, Kind, Operation, OperationState, Status, UnregisteredEngine
from policy import crypto

_ports = itertools.count(30001)


def put_engine(product, user_id="alice", status=Status.RUNNING, **columns):
    """An engine of the product in that state, with a key; no process belongs to it, and no audit row."""
    host, _ = Host.objects.get_or_create(name="local")
    key = crypto.make_key(crypto.ENGINE_PREFIX)
    given = {
        "engine_version": "image:1",
        "port": next(_ports),
        "key_hash": crypto.hash_key(key),
        "key_ciphertext": crypto.encrypt(key),
    }
    engine = Engine.objects.create(product=product, host=host, user_id=user_id, status=status, **{**given, **columns})
    engine.refresh_from_db()
    return engine


def put_operation(engine, kind=Kind.STOP, state=OperationState.PENDING, **columns):
    """An operation on the engine; nobody was told of it."""
    return Operation.objects.create(
        engine=engine, kind=kind, state=state, actor="system", incarnation=engine.incarnation, **columns
    )


def put_unregistered(user_id="alice", **columns):
    """An engine that only the runtime has, as a sweep would note it."""
    given = {"product_slug": "acme", "image": "image:1", "incarnation": 1, "has_volume": True, "runs": False}
    return UnregisteredEngine.objects.create(engine_id=uuid4(), user_id=user_id, **{**given, **columns})


def put_engines(product, ports, **columns):
    """A running engine on each of the ports, due for a probe."""
    host, _ = Host.objects.get_or_create(name="local")
    given = {
        "status": Status.RUNNING,
        "engine_version": "image:1",
        "key_hash": "0" * 64,
        "key_ciphertext": "x",
        "next_probe_at": Now(),
    }
    engines = [Engine(product=product, host=host, user_id=f"user-{port}", port=port, **{**given, **columns}) for port in ports]
    Engine.objects.bulk_create(engines)
    return engines
