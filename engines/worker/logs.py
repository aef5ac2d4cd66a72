"""Reads an engine's last log lines for a web process, which does not call the backend itself."""

from collections.abc import Sequence
from uuid import UUID

import structlog

from common import times
from engines import backends, log_mailbox, specs
from engines.backends.base import BackendError
from engines.log_mailbox import MAX_LINES, WAIT_S, Answer
from engines.models import Engine

log = structlog.get_logger(__name__)

MAX_LINE, MAX_TEXT = 4_096, 1_000_000  # characters of a line before the words that it was cut, and of all lines


def hand_over(engine_id: UUID, tail: int, token: UUID, asked_at: float | None = None) -> None:
    """Read the last `tail` lines, at most MAX_LINES, and leave them for the web process under `token`.

    `asked_at`: when the web process asked, in seconds since 1970 by the database's clock. After WAIT_S nobody waits any more, and
    nothing is read. A destroyed engine has no lines.
    """
    if asked_at is not None and not times.database_now().timestamp() - asked_at <= WAIT_S:
        log.info("logs_not_wanted", engine_id=str(engine_id))
        return
    engine = Engine.objects.living().filter(pk=engine_id).first()
    answer: Answer = {"lines": []} if engine is None else _read(engine, max(1, min(tail, MAX_LINES)))
    log_mailbox.put(token, engine_id, answer)


def _read(engine: Engine, tail: int) -> Answer:
    try:
        return {"lines": _cut(backends.get().logs(specs.ref_of(engine), tail=tail))}
    except BackendError as error:
        log.warning("logs_not_read", engine_id=str(engine.pk), error=str(error))
        return {"error": error.code}  # the runtime's words stay here


def _cut(lines: Sequence[str]) -> list[str]:
    """The newest lines, each cut to MAX_LINE, and MAX_TEXT in all; NUL, which no terminal wants, is left out."""
    cut: list[str] = []
    left = MAX_TEXT
    for line in reversed(lines):
        kept = _cut_line(line.replace("\0", ""))
        left -= len(kept) + 1
        if left < 0:
            break
        cut.append(kept)
    return cut[::-1]


def _cut_line(line: str) -> str:
    """The line, or its first MAX_LINE characters and how many are left out."""
    return line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} [{len(line) - MAX_LINE} more characters left out]"
