"""The behaviour of an instance, as set by a test."""

from dataclasses import dataclass
from typing import Literal

OK = b'{"status": "ok"}'


@dataclass(frozen=True)
class Behaviour:
    """`Behaviour()` is a healthy instance. All times are in seconds; all fields may be combined."""

    status: int = 200  # of the answer to GET /health
    body: bytes = OK
    delay_s: float = 0.0  # before the answer to a request
    hangs: bool = False  # accepts connections and never answers
    proof: Literal["right", "wrong", "none"] = "right"  # of the answers to GET /health
    boot_s: float = 0.0  # for as long after a start, /health answers 503 "starting"
    dies_after_s: float | None = None  # until the end by itself; counts from a start, or from `behave` if running
    stop_s: float = (
        0.0  # from the stop until the end, as if a turn had to finish; 503 "draining" meanwhile. The grace may be shorter
    )
    # Hostile answers, to any request: `begin` as it is, then `repeat` again and again until the client closes the connection.
    begin: bytes = b""
    repeat: bytes = b""
    pause_s: float = 0.0  # before every `repeat`; 0: as fast as the client reads

    @property
    def is_raw(self) -> bool:
        """Whether the instance sends `begin` and `repeat` in place of an HTTP answer."""
        return bool(self.begin or self.repeat)
