"""What the volumes of a host take of its disk."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self
from uuid import UUID

MB = 2**20


@dataclass(frozen=True)
class Usage:
    """The disk space in MB of each measured volume, and the disk that has the volumes.

    `at_least` has the volumes with more files than could be counted in time: they take what `used_mb` says, or more.
    `free_share` is the free share of the disk, from 0 to 1: of its space or of its inodes, whichever is smaller.
    """

    used_mb: Mapping[UUID, int]
    at_least: frozenset[UUID] = frozenset()
    total_mb: int = 0
    free_mb: int = 0
    free_share: float = 1.0

    @classmethod
    def of(cls, engine_ids: Iterable[UUID], found: Mapping[UUID, tuple[int, bool]], disk: tuple[int, int, float]) -> Self:
        """The usage, from what `walk` measured: the bytes of each volume that is there, and the bytes of the disk."""
        used_mb = {engine_id: -(-found.get(engine_id, (0, True))[0] // MB) for engine_id in engine_ids}
        at_least = frozenset(engine_id for engine_id, (_, is_whole) in found.items() if not is_whole)
        total, free, share = disk
        return cls(used_mb, at_least, total // MB, free // MB, share)
