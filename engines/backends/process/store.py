"""What the subprocess backend keeps of an engine, one folder each:

    data/               the volume
    <incarnation>.json  what to run: port, image, environment; present from create to destroy
    <incarnation>.pid   which process ran last, written by that process itself before it became the engine
    <incarnation>.log   what it wrote
    doomed              the folder is being removed: nothing may start from it any more

The folder itself is the lock of the engine's process (`flock`, see `launch`). All files are replaced as a whole, never edited.
"""

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engines.backends.process import processes
from engines.backends.process.processes import Process

LOG_LIMIT = 1_000_000  # bytes; a longer log is cut down when the instance starts again ...
LOG_KEPT = 250_000  # ... to its last so many


class Record(NamedTuple):
    """The process that an instance ran as last, and the port it was given."""

    process: Process
    port: int


def read_spec(folder: Path, incarnation: int) -> dict[str, Any] | None:
    """`{"product": str, "image": str, "port": int, "env": {str: str}}`, or None: there is no such instance."""
    return _read(folder / f"{incarnation}.json")


def write_spec(folder: Path, incarnation: int, spec: dict[str, Any]) -> None:
    """Keep `spec` under the instance's name. Raises FileNotFoundError when the folder is gone."""
    _write(folder / f"{incarnation}.json", spec)


def read_record(folder: Path, incarnation: int) -> Record | None:
    """The instance's last process; None if it never had one."""
    found = _read(folder / f"{incarnation}.pid")
    return None if found is None else Record(Process(found["pid"], found["start"], found["boot"]), found["port"])


def write_record(folder: Path, incarnation: int, record: Record) -> None:
    """Keep the process that the instance runs as. Raises FileNotFoundError when the folder is gone."""
    _write(folder / f"{incarnation}.pid", {**record.process._asdict(), "port": record.port})


def records(folder: Path) -> dict[int, Record]:
    """The last process of every incarnation that has run, by number."""
    found = ((number, read_record(folder, number)) for number in _numbers(folder, ".pid"))
    return {number: record for number, record in found if record}


def running(folder: Path) -> dict[int, Record]:
    """Those whose process is alive. More than one would be a bug."""
    return {number: record for number, record in records(folder).items() if processes.is_alive(record.process)}


def incarnations(folder: Path) -> list[int]:
    """Numbers of the instances that exist: made and not destroyed, or destroyed by someone who died before the process did."""
    return sorted({*_numbers(folder, ".json"), *running(folder)})


def is_doomed(folder: Path) -> bool:
    """Whether somebody began to remove the engine."""
    return (folder / "doomed").exists()


def trim_log(path: Path) -> None:
    """Cut a log beyond LOG_LIMIT down to its last LOG_KEPT bytes; nobody may have it open for writing."""
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        _replace(path, tail_bytes(path, LOG_KEPT))


def tail_bytes(path: Path, size: int) -> bytes:
    """The last `size` bytes of a file; none if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read()
    except FileNotFoundError:
        return b""


def _numbers(folder: Path, suffix: str) -> Iterator[int]:
    try:
        stems = [path.stem for path in folder.iterdir() if path.suffix == suffix]
    except (FileNotFoundError, NotADirectoryError):
        return
    yield from (int(stem) for stem in stems if stem.isascii() and stem.isdecimal())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # not ours if it is no JSON: we write files as a whole
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, content: dict[str, Any]) -> None:
    _replace(path, json.dumps(content).encode())


def _replace(path: Path, content: bytes) -> None:
    """Write the file in one step, readable for its owner only."""
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
