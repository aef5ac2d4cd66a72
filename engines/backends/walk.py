"""The disk space that folders take, measured within a time limit; also a program: `python3 walk.py SECONDS PLACES FOLDERS`.

PLACES and FOLDERS are JSON lists of paths. The program prints `{"folders": [[bytes, is_whole], ...], "disk": [total, free,
share]}`. The Docker backend runs the program in a container of the guard's image: the module needs only the standard library.

GNU find walks the folders: its memory stays bounded in wide and deep trees, it follows no symbolic link, and it enters no other
file system. The names of files are never read.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence

SLICE_S = 0.5  # after so long, a walk waits until every other folder has had its turn
SUSPENDED = 4  # walks that may wait; a further walk that needs longer ends, because every walk takes memory
LEAST = 4096  # bytes: an empty file takes no block, but an inode, of which a disk has a limited number
BLOCK = 512  # bytes, the unit of `%b`
PART = 65_536  # bytes


class Walk:
    """A walk through a folder: the bytes found so far. `is_whole` is true once the walk has seen everything."""

    def __init__(self, folder: str) -> None:
        self.bytes = 0.0
        self.is_over = self.is_whole = False
        self._folder = folder
        self._find: subprocess.Popen[bytes] | None = None
        self._rest = b""  # of a line that is not read to its end

    def advance(self, seconds: float) -> None:
        """Go on for a time. Between two calls, find stands still as soon as its pipe is full."""
        if self._find is None:
            command = ["find", "-P", self._folder, "-xdev", "-printf", "%y %b %n\\n"]
            self._find = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._find.stdout is not None
        pipe, ready, until = self._find.stdout.fileno(), select.poll(), time.monotonic() + seconds
        ready.register(pipe)
        while (left_s := until - time.monotonic()) > 0 and ready.poll(left_s * 1000):
            part = os.read(pipe, PART)
            if not part:
                # 1: a file vanished in the middle. After a signal, as from the kernel short of memory, not everything was seen.
                self.is_whole = self._find.wait() in (0, 1)
                self.is_over = True
                return
            self._count(part)

    def end(self) -> None:
        """End the walk, whether it is over or not."""
        self.is_over = True
        if self._find is not None:
            assert self._find.stdout is not None
            self._find.kill()
            self._find.wait()
            self._find.stdout.close()

    def _count(self, part: bytes) -> None:
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            kind, blocks, names = line.split()
            size = max(int(blocks) * BLOCK, LEAST)
            # Each name of a file counts for its share: all its names are in the volume, as no hard link leads out of a mount.
            self.bytes += size if kind == b"d" else size / max(1, int(names))


def measure(folders: Sequence[str], budget_s: float) -> list[tuple[int, bool]]:
    """The bytes of each folder, and whether they are all: for a walk that the end of the time cuts short, they are the least."""
    deadline = time.monotonic() + budget_s
    walks = [Walk(folder) for folder in folders]
    fresh, suspended = deque(walks), deque[Walk]()
    while (fresh or suspended) and (left_s := deadline - time.monotonic()) > 0:
        walk = (fresh or suspended).popleft()
        walk.advance(min(SLICE_S, left_s))
        if not walk.is_over and len(suspended) < SUSPENDED:
            suspended.append(walk)
        else:
            walk.end()
    for walk in walks:
        walk.end()
    return [(int(walk.bytes), walk.is_whole) for walk in walks]


def room(places: Sequence[str]) -> tuple[int, int, float]:
    """Total and free bytes of the fullest of the disks with these places, and its free share: of its space or of its inodes."""
    found = []
    for place in places:
        disk = os.statvfs(place)
        shares = [disk.f_bavail / disk.f_blocks] if disk.f_blocks else []
        shares += [disk.f_favail / disk.f_files] if disk.f_files else []  # some file systems have no limit on inodes, and say 0
        found.append((min(shares, default=1.0), disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize))
    share, total, free = min(found)
    return total, free, share


if __name__ == "__main__":
    seconds, places, folders = sys.argv[1:]
    os.nice(19)
    print(json.dumps({"folders": measure(json.loads(folders), float(seconds)), "disk": room(json.loads(places))}))
