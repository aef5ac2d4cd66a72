"""The deployment under test: reached over REST as a product, with a product of its own that is gone afterwards."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import requests
from django.core.management.base import CommandError

from audit import actors
from engines import lifecycle, operations
from engines.models import Engine
from policy import products
from policy.models import Product

TIMEOUT_S = 120.0


@dataclass
class Deployment:
    """A running deployment, and the benchmark's product in it."""

    url: str
    product: Product
    session: requests.Session

    def timed(self, method: str, path: str, body: Any = None) -> float:
        """Seconds that a request took. Raises CommandError unless it was answered with 200."""
        began = time.perf_counter()
        answer = self.session.request(method, self.url + path, json=body, timeout=TIMEOUT_S)
        seconds = time.perf_counter() - began
        if answer.status_code != 200:
            raise CommandError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return seconds

    def sleep(self, user_id: str) -> None:
        """Put the user's engine to sleep, and wait until it does."""
        operation = lifecycle.sleep(lifecycle.find(self.product, user_id), by=actors.ADMIN)
        operations.finish(operation, TIMEOUT_S)


@contextmanager
def deployment(url: str) -> Iterator[Deployment]:
    """Register a product for the benchmark; at the end every engine of it is destroyed. Raises CommandError."""
    try:
        requests.get(f"{url}/health", timeout=5).raise_for_status()
    except requests.RequestException as error:
        raise CommandError(f"no deployment answers at {url}: start one with `make run`, or name it with --url") from error
    product, key = products.register(f"bench-{uuid4().hex[:12]}", "Benchmark", {}, by=actors.ADMIN)
    session = requests.Session()
    session.headers["X-Platform-Key"] = key
    try:
        yield Deployment(url, product, session)
    finally:
        for engine in Engine.objects.living().filter(product=product):
            lifecycle.destroy(engine, by=actors.ADMIN)
