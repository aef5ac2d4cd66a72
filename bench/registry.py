"""A product and running engines inserted directly into the registry, for benchmarks without calls to engines."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from django.core.management.base import CommandError
from django.db import connection, transaction

from audit import actors
from engines import hosts
from engines.models import Engine, Host, Status
from policy import crypto, products
from policy.models import Product


@contextmanager
def product(policy: dict[str, Any], engines: int) -> Iterator[tuple[Product, str]]:
    """A product with a platform key and `engines` running engines, of the users `user-0`, `user-1` and so on.

    The engines have no process and are never probed. Afterwards the engines are deleted and the product's keys are revoked. The
    product stays, because audit rows name the product. Raises CommandError when the database has no tables.
    """
    if Product._meta.db_table not in connection.introspection.table_names():
        raise CommandError("The database has no tables yet: run manage.py migrate first.")
    made, key = products.register(f"bench-{uuid4().hex[:12]}", "Benchmark", policy, by=actors.ADMIN)
    try:
        _insert(made, engines)
        yield made, key
    finally:
        Engine.objects.filter(product=made).delete()
        for platform_key in made.keys.filter(revoked_at=None):
            products.revoke_key(platform_key.pk, by=actors.ADMIN)


@transaction.atomic
def _insert(owner: Product, engines: int) -> None:
    host = hosts.local()
    Engine.objects.bulk_create([_engine(owner, host, n) for n in range(engines)])


def _engine(owner: Product, host: Host, number: int) -> Engine:
    key = crypto.make_key(crypto.ENGINE_PREFIX)
    return Engine(
        product=owner,
        host=host,
        user_id=f"user-{number}",
        status=Status.RUNNING,
        engine_version="bench",
        key_hash=crypto.hash_key(key),
        key_ciphertext=crypto.encrypt(key),
    )
