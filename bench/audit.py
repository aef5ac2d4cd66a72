"""`GET /audit` with 100 rows, compared with the same query through Django REST framework's ModelSerializer."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandError
from django.db import connection
from rest_framework import serializers
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory

from audit import actors, api, trail
from audit.actions import Action
from audit.models import AuditRow
from bench import registry
from fleet import api as fleet
from policy.models import Product

ROWS = 100
LIMIT = 2.0


class Rows(serializers.ModelSerializer[AuditRow]):
    """The columns of `GET /audit`."""

    class Meta:
        model = AuditRow
        fields = api.FIELDS


@api_view(["GET"])
def through_serializer(request: Request) -> Response:
    """The newest audit rows of the product, written in the style of the framework's tutorial."""
    assert isinstance(request.auth, Product)
    own = AuditRow.objects.filter(product_id=request.auth.pk).order_by("-timestamp", "-id")[: ROWS + 1]
    return Response({"results": Rows(own[:ROWS], many=True).data, "next": None, "previous": None})


def _ask(view: Callable[..., Any], key: str) -> Any:
    """The rendered answer of `view`, including all work of the framework for a request."""
    answer = view(APIRequestFactory().get(f"/audit?limit={ROWS}", headers={"X-Platform-Key": key, "Host": "localhost"}))
    if isinstance(answer, Response):
        answer.render()
    connection.close()  # as Django does after every request
    return answer


def measure(rounds: int, count: int) -> list[tuple[float, float]]:
    """Requests per second by round, (`GET /audit`, serializer). The two views alternate."""
    with registry.product({}, 1) as (product, key):
        subject = trail.Subject(product_id=product.pk, product_slug=product.slug, user_id="user-0")
        for n in range(ROWS):
            trail.record(Action.ADMIT_DENIED, subject, by=actors.product(product.slug), metadata={"rule": "bench", "limit": n})
        _check(key)
        return [(_rate(fleet.audit, key, count), _rate(through_serializer, key, count)) for _ in range(rounds)]


def _check(key: str) -> None:
    """Raise CommandError unless both views answer with the same rows."""
    ours, theirs = (json.loads(_ask(view, key).content)["results"] for view in (fleet.audit, through_serializer))
    if [row["id"] for row in ours] != [row["id"] for row in theirs] or len(ours) != ROWS:
        raise CommandError("GET /audit and the ModelSerializer view answer with different rows")


def _rate(view: Callable[..., Any], key: str, count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        _ask(view, key)
    return count / (time.perf_counter() - began)


def report(rates: list[tuple[float, float]]) -> tuple[str, bool]:
    """The figures (medians of the rounds), and whether the limit holds."""
    ours, theirs = (statistics.median(both[side] for both in rates) for side in (0, 1))
    ratio = statistics.median(mine / other for mine, other in rates)
    verdict = "PASS" if ratio >= LIMIT else "FAIL"
    line = f"GET /audit with {ROWS} rows: {ours:.0f}/s, through ModelSerializer {theirs:.0f}/s"
    return f"{line}\n{verdict}  {ratio:.2f} x (at least {LIMIT})", ratio >= LIMIT
