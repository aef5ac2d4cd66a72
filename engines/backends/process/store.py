"""The subprocess backend's folder for an engine:

    data/               the volume
    owner               whose engine it is: product and user
    <mark>.json         the spec to run: product, image, port, environment; exists from create to destroy
    <mark>.pid          the record of the last process, written by the process itself before it becomes the engine
    <mark>.log          the output of the instance
    doomed              the folder is being removed: no process may start from the folder any more

`mark` is the `Ref.mark` of an incarnation. The folder itself is the lock of the engine's process (`flock`, see `launch`). All
files are replaced as a whole, never edited.
"""

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engines.backends.marks import MARK
from engines.backends.process import processes
from engines.backends.process.processes import Process

LOG_LIMIT = 1_000_000  # bytes; the next start of the instance cuts a longer log down to LOG_KEPT
LOG_KEPT = 250_000  # bytes at the end of the log


class Record(NamedTuple):
    """The last process of an instance, and what it was given: port, address, folder of the catalog (empty: not known)."""

    process: Process
    port: int
    bind: str = ""
    catalog: str = ""


def read_spec(folder: Path, mark: str) -> dict[str, Any] | None:
    """`{"product": str, "user_id": str, "image": str, "port": int, "env": {str: str}}`; None if the instance does not exist."""
    return _read(folder / f"{mark}.json")


def write_spec(folder: Path, mark: str, spec: dict[str, Any]) -> None:
    """Store `spec` for the instance. Raises FileNotFoundError when the folder is gone."""
    _write(folder / f"{mark}.json", spec)


def read_owner(folder: Path) -> dict[str, str]:
    """`{"product": str, "user_id": str}`; empty for an engine from before owners were kept."""
    found = _read(folder / "owner") or {}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def keep_owner(folder: Path, owner: dict[str, str]) -> None:
    """Store the owner of a new volume. Raises FileNotFoundError when the folder is gone."""
    if not (folder / "owner").exists():
        _write(folder / "owner", owner)


def read_record(folder: Path, mark: str) -> Record | None:
    """The instance's last process; None if the instance never ran."""
    found = _read(folder / f"{mark}.pid")
    if found is None:
        return None
    process = Process(found["pid"], found["start"], found["boot"])
    return Record(process, found["port"], found.get("bind", ""), found.get("catalog", ""))


def write_record(folder: Path, mark: str, record: Record) -> None:
    """Store the instance's process. Raises FileNotFoundError when the folder is gone."""
    given = {"port": record.port, "bind": record.bind, "catalog": record.catalog}
    _write(folder / f"{mark}.pid", {**record.process._asdict(), **given})


def records(folder: Path) -> dict[str, Record]:
    """The last process of every incarnation that has run, by mark."""
    found = ((mark, read_record(folder, mark)) for mark in _marks(folder, ".pid"))
    return {mark: record for mark, record in found if record}


def running(folder: Path) -> dict[str, Record]:
    """The records with a living process, by mark. Two or more would be a bug."""
    return {mark: record for mark, record in records(folder).items() if processes.is_alive(record.process)}


def marks(folder: Path) -> list[str]:
    """Of incarnations with a spec, or with a living process left by a worker that died in the middle of a destroy; sorted."""
    return sorted({*_marks(folder, ".json"), *running(folder)})


def is_doomed(folder: Path) -> bool:
    """Whether somebody began to remove the engine."""
    return (folder / "doomed").exists()


def trim_log(path: Path) -> None:
    """Cut a log beyond LOG_LIMIT down to the lines in its last LOG_KEPT bytes; no process may have the log open for writing."""
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        kept = tail_bytes(path, LOG_KEPT)
        _replace(path, kept.partition(b"\n")[2] or kept)


def tail_bytes(path: Path, size: int) -> bytes:
    """The last `size` bytes of a file; empty if the file does not exist."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size)  # not to the end: an engine may write faster than we read
    except FileNotFoundError:
        return b""


def _marks(folder: Path, suffix: str) -> Iterator[str]:
    try:
        stems = [path.stem for path in folder.iterdir() if path.suffix == suffix]
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (stem for stem in stems if MARK.fullmatch(stem))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # a file without JSON is not ours: we write files as a whole
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, content: dict[str, Any]) -> None:
    _replace(path, json.dumps(content).encode())


def _replace(path: Path, content: bytes) -> None:
    """Replace the file in a single step; only the owner can read the file."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
