"""How an instance behaves, as a test asks for it."""

from dataclasses import dataclass

OK = b'{"status": "ok"}'


@dataclass(frozen=True)
class Behaviour:
    """`Behaviour()` is a healthy instance. All times are in seconds; each field may be combined with the others."""

    status: int = 200  # of the answer to GET /health
    body: bytes = OK
    delay_s: float = 0.0  # before that answer
    hangs: bool = False  # accepts connections and never answers
    boot_s: float = 0.0  # from its start until it answers as above; 503 "starting" before
    dies_after_s: float | None = None  # from its start, or from the moment this was asked for: it ends by itself
    stop_s: float = (
        0.0  # from being asked to stop until it ends, as with a last turn; 503 "draining" meanwhile. The grace may be over first
    )
