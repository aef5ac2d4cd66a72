"""Re-encrypt all tokens under the first master key, in batches, while the fleet is served.

Every column called `ciphertext` or `..._ciphertext` holds Fernet tokens or empty strings. A token itself shows whether the first
key made the token. Runs therefore keep no state, and a killed run is simply repeated.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.fernet import InvalidToken
from django.apps import apps
from django.db import connection, models

from policy import crypto, key_check
from policy.models import KeyCheck

BATCH = 500  # tokens per statement
SAMPLE = 20  # tokens of each column that are tried where there is no key check yet


@dataclass(frozen=True)
class Column:
    """A column of Fernet tokens."""

    model: type[models.Model]
    name: str

    def __str__(self) -> str:
        return f"{self.model._meta.db_table}.{self.name}"

    def sample(self) -> list[str]:
        """SAMPLE of the tokens."""
        return list(self._filled().values_list(self.name, flat=True)[:SAMPLE])

    def _filled(self) -> "models.QuerySet[Any]":
        return self.model._default_manager.exclude(**{self.name: ""})

    def batches(self) -> Iterator[list[tuple[Any, str]]]:
        """All pairs (primary key, token) in order of the primary key, in lists of up to BATCH pairs."""
        filled = self._filled().order_by("pk").values_list("pk", self.name)
        batch = list(filled[:BATCH])
        while batch:
            yield batch
            batch = list(filled.filter(pk__gt=batch[-1][0])[:BATCH])


@dataclass
class Found:
    """Numbers of tokens counted in a pass over a column."""

    tokens: int = 0
    outdated: int = 0  # readable, but under a later key than the first
    reencrypted: int = 0
    unreadable: int = 0  # no master key opens the token


def columns() -> list[Column]:
    """The columns of tokens of all models; the key check last, which stands for all others."""
    fields = [(model, field.name) for model in apps.get_models() for field in model._meta.concrete_fields]
    found = [Column(model, name) for model, name in fields if name == "ciphertext" or name.endswith("_ciphertext")]
    return sorted(found, key=lambda column: column.model is KeyCheck)


def ensure_check() -> bool:
    """Whether a master key is the one of the data; writes the key check if there is none yet.

    Without a key check a sample of each column decides: a master key opens one of them, or there is no token.
    """
    if key_check.read(connection) is not None:
        return key_check.fits(connection)
    tokens = [token for column in columns() for token in column.sample()]
    is_right = not tokens or any(map(crypto.opens, tokens))
    if is_right:
        key_check.write()
    return is_right


def inspect(column: Column) -> Found:
    """Count the tokens of a column without changing them."""
    found = Found()
    for batch in column.batches():
        _renew(batch, found)
    return found


def rotate(column: Column, report: Callable[[Found], object]) -> Found:
    """Re-encrypt the outdated tokens of a column under the first key; call `report` after every batch.

    A token stays unchanged when a concurrent transaction changes it or holds its row locked. `outdated` is then more than
    `reencrypted`, and a further pass is needed.
    """
    found = Found()
    for batch in column.batches():
        renewed = _renew(batch, found)
        if renewed:
            found.reencrypted += _write(column, renewed)
        report(found)
    return found


def _renew(batch: list[tuple[Any, str]], found: Found) -> list[tuple[Any, str, str]]:
    """(primary key, token, re-encrypted token) of the outdated tokens; counts all tokens of the batch into `found`."""
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
    """Replace tokens unchanged since they were read; returns the number replaced. Skips locked rows instead of waiting.

    While waiting, the statement would already hold locks on further rows, and writers of the locked rows would wait too.
    """
    pk = column.model._meta.pk
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            -- fresh: primary key, token as read, re-encrypted token
            UPDATE {column.model._meta.db_table} t SET {column.name} = fresh.token
            FROM unnest(%(ids)s::{pk.db_type(connection)}[], %(old)s::text[], %(new)s::text[]) AS fresh(id, old, token)
            -- fresh.old: skip a token written since the read, to keep the newer key
            WHERE t.{pk.column} = fresh.id AND t.{column.name} = fresh.old AND t.{pk.column} IN (
                -- lock the rows of the batch, without the rows locked by concurrent transactions
                SELECT {pk.column} FROM {column.model._meta.db_table}
                WHERE {pk.column} = ANY(%(ids)s::{pk.db_type(connection)}[]) FOR NO KEY UPDATE SKIP LOCKED)
            """,
            dict(zip(("ids", "old", "new"), map(list, zip(*renewed, strict=True)), strict=True)),
        )
        return int(cursor.rowcount)
