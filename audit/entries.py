"""The form of a line of the catalogue of audit actions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import UnionType

from audit.actions import About, Retention, Takes


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue. `metadata` maps every allowed key to its type.

    `shown` has the keys that products see in their rows. All others are for operators: reasons that staff gave, names of admin
    keys, the room of the host, names of foreign containers.
    """

    meaning: str
    triggered_by: str
    metadata: Mapping[str, type | UnionType] = field(default_factory=dict)
    shown: Collection[str] = ()
    retention: Retention = Retention.STANDARD
    about: About = About.ENGINE
    takes: Takes = Takes.MOMENT
