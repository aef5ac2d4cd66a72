"""Bring everything that is encrypted under the first master key, in batches, while the fleet is served.

Every column called `ciphertext` or `..._ciphertext` holds Fernet tokens, or nothing. A token itself says whether the first key
made it, so there is nothing to remember between runs: one that was killed is run again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.fernet import InvalidToken
from django.apps import apps
from django.db import connection, models

from policy import crypto

BATCH = 500  # tokens per statement


@dataclass(frozen=True)
class Column:
    """A column of tokens."""

    model: type[models.Model]
    name: str

    def __str__(self) -> str:
        return f"{self.model._meta.db_table}.{self.name}"

    def batches(self) -> Iterator[list[tuple[Any, str]]]:
        """All (primary key, token) in order, BATCH at a time."""
        filled = self.model._default_manager.exclude(**{self.name: ""}).order_by("pk").values_list("pk", self.name)
        batch = list(filled[:BATCH])
        while batch:
            yield batch
            batch = list(filled.filter(pk__gt=batch[-1][0])[:BATCH])


@dataclass
class Found:
    """What a pass over a column has come across."""

    tokens: int = 0
    outdated: int = 0  # under another key than the first
    reencrypted: int = 0
    unreadable: int = 0  # no master key opens it


def columns() -> list[Column]:
    """Every column of tokens there is."""
    fields = [(model, field.name) for model in apps.get_models() for field in model._meta.concrete_fields]
    return [Column(model, name) for model, name in fields if name == "ciphertext" or name.endswith("_ciphertext")]


def look(column: Column) -> Found:
    """Count, and change nothing."""
    found = Found()
    for batch in column.batches():
        _renew(batch, found)
    return found


def rotate(column: Column, report: Callable[[Found], object]) -> Found:
    """Re-encrypt what is under another key than the first; `report` is called after each batch.

    A token that somebody else changes, or holds locked, in the same moment is left as it is: `outdated` is then more than
    `reencrypted`, and another pass is due.
    """
    found = Found()
    for batch in column.batches():
        renewed = _renew(batch, found)
        if renewed:
            found.reencrypted += _write(column, renewed)
        report(found)
    return found


def _renew(batch: list[tuple[Any, str]], found: Found) -> list[tuple[Any, str, str]]:
    """(primary key, token, the same under the first key) of those under another one; counts them into `found`."""
    renewed = []
    for pk, token in batch:
        found.tokens += 1
        if crypto.is_current(token):
            continue
        try:
            renewed.append((pk, token, crypto.reencrypt(token)))
            found.outdated += 1
        except InvalidToken:
            found.unreadable += 1
    return renewed


def _write(column: Column, renewed: list[tuple[Any, str, str]]) -> int:
    """Exchange the tokens that are still what they were; how many. Waits for no lock, so that nobody waits for two of ours."""
    pk = column.model._meta.pk
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {column.model._meta.db_table} t SET {column.name} = fresh.token
            FROM unnest(%(ids)s::{pk.db_type(connection)}[], %(old)s::text[], %(new)s::text[]) AS fresh(id, old, token)
            WHERE t.{pk.column} = fresh.id AND t.{column.name} = fresh.old AND t.{pk.column} IN (
                SELECT {pk.column} FROM {column.model._meta.db_table}
                WHERE {pk.column} = ANY(%(ids)s::{pk.db_type(connection)}[]) FOR NO KEY UPDATE SKIP LOCKED)
            """,
            dict(zip(("ids", "old", "new"), map(list, zip(*renewed, strict=True)), strict=True)),
        )
        return int(cursor.rowcount)
