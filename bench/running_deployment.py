"""The running deployment under test, called over REST with the platform key of a newly registered product."""

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
    """A running deployment and the benchmark's product."""

    url: str
    product: Product
    session: requests.Session

    def timed(self, method: str, path: str, body: Any = None) -> float:
        """Send a request and return its duration in seconds. Raises CommandError for every status but 200."""
        began = time.perf_counter()
        answer = self.session.request(method, self.url + path, json=body, timeout=TIMEOUT_S)
        seconds = time.perf_counter() - began
        if answer.status_code != 200:
            raise CommandError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return seconds

    def sleep(self, user_id: str) -> None:
        """Put the user's engine to sleep, and wait until the operation has finished."""
        operation = lifecycle.sleep(lifecycle.find(self.product, user_id), by=actors.ADMIN)
        operations.finish(operation, TIMEOUT_S)


@contextmanager
def deployment(url: str) -> Iterator[Deployment]:
    """Register a product; destroy all its engines at the end. Raises CommandError if no deployment answers at `url`."""
    try:
        requests.get(f"{url}/health", timeout=5).raise_for_status()
    except requests.RequestException as error:
        raise CommandError(f"no deployment answers at {url}: start `make run`, or give another URL with --url") from error
    product, key = products.register(f"bench-{uuid4().hex[:12]}", "Benchmark", {}, by=actors.ADMIN)
    session = requests.Session()
    session.headers["X-Platform-Key"] = key
    try:
        yield Deployment(url, product, session)
    finally:
        for engine in Engine.objects.living().filter(product=product):
            lifecycle.destroy(engine, by=actors.ADMIN)
