"""Checks the metadata of a row against the catalogue."""

from collections.abc import Mapping
from types import UnionType

from audit.actions import Action
from audit.catalogue import CATALOGUE


def check_metadata(action: Action, metadata: Mapping[str, object]) -> None:
    """Raise ValueError for a key missing in the catalogue, TypeError for a value of the wrong type (None included)."""
    allowed = CATALOGUE[action].metadata
    for key, value in metadata.items():
        if key not in allowed:
            raise ValueError(f"{action}: metadata key {key!r} is not in the catalogue")
        kind = int | float if allowed[key] is float else allowed[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and allowed[key] is not bool):
            raise TypeError(f"{action}: metadata {key!r} must be {type_name(allowed[key])}, not {type(value).__name__}")


def type_name(kind: type | UnionType) -> str:
    """Return the name of a metadata type, such as `int` or `int | str`."""
    return kind.__name__ if isinstance(kind, type) else str(kind)
