import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit import actors
from common.settings import settings
from engines import addresses, health, lifecycle, operations
from engines.errors import EngineError, Unsuccessful
from engines.models import Engine
from policy import crypto, products
from policy.errors import PolicyError
from policy.models import Product


class Command(BaseCommand):
    help = (
        "Carry an engine through provision, execute and destroy in a container runtime, as a product's engine. Needs running"
        " workers and a place from which engines are reached. The image has to answer POST /execute as the demo engine does."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("runtime", help="a container runtime of ORCH_ENGINE_RUNTIMES")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with _product(options["runtime"]) as product:
                self._carry_through(product)
        except Unsuccessful as error:
            raise CommandError(error.operation.error_message or str(error)) from error
        except (EngineError, PolicyError) as error:
            raise CommandError(str(error)) from error

    def _carry_through(self, product: Product) -> None:
        with self._timed("provision"):
            _finish(lifecycle.provision(product, "try", by=actors.ADMIN))
        engine = lifecycle.find(product, "try")
        with self._timed("execute"):
            _execute(engine)
        with self._timed("destroy"):
            _finish(lifecycle.destroy(engine, by=actors.ADMIN))

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.stdout.write(f"{step}: done in {time.monotonic() - began:.1f} s")


@contextmanager
def _product(runtime: str) -> Iterator[Product]:
    """A product whose engines run in the runtime, deleted at the end with all its engines. Raises InvalidPolicy."""
    name = f"try-runtime-{uuid4().hex[:12]}"
    product, _ = products.register(name, f"Try of the container runtime {runtime}", {"runtime": runtime}, by=actors.ADMIN)
    try:
        yield product
    finally:
        for engine in Engine.objects.living().filter(product=product):
            _finish(lifecycle.destroy(engine, by=actors.ADMIN))
        lifecycle.delete_product(product.pk, by=actors.ADMIN)


def _finish(operation: Any) -> None:
    """Wait for the operation's end. Raises Unfinished, Unsuccessful."""
    operations.finish(operation, settings.ENV.boot_timeout_s + settings.ENV.stop_grace_s + settings.ENV.wait_s)


def _execute(engine: Engine) -> None:
    """Let the engine carry out one turn. Raises CommandError with the engine's answer, or the reason for none."""
    assert engine.port is not None  # every living engine has a port
    with health.Prober(engine, engine.key_hash, must_prove=engine.proves) as prober:
        if not (found := prober.probe()).ok:  # a stranger may have the port, and must not get the key
            raise CommandError(f"execute: the engine is not healthy: {found.text}")
    address = urlsplit(addresses.probe_url(engine.pk, engine.port))
    caller = http.client.HTTPConnection(address.hostname or "", address.port, timeout=settings.ENV.boot_timeout_s)
    headers = {"X-Engine-Key": crypto.decrypt(engine.key_ciphertext), "Content-Type": "application/json"}
    try:
        caller.request("POST", "/execute", json.dumps({"input": "one turn"}), headers)
        answer = caller.getresponse()
        text = answer.read(64 * 1024).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise CommandError(f"execute: no answer from {address.netloc}: {error}") from error
    finally:
        caller.close()
    if answer.status != 200 or "event: done" not in text:
        raise CommandError(f"execute: {answer.status} {text[:300]}")
