"""Operations, which are promised changes of engines: their rows are opened, sent, claimed, leased, ended and waited for.

`worker` carries an operation out. `lifecycle` decides what its end means for the engine.
"""

from engines.operations.ending import close, drop, supersede
from engines.operations.intent import find_open, get, join, open, params_of  # noqa: A004 (callers write `operations.open`)
from engines.operations.leases import Lease, LeaseLost, check, claim, release, renew, step
from engines.operations.queues import dispatch, position
from engines.operations.waiting import finish, wait

__all__ = [
    "Lease",
    "LeaseLost",
    "check",
    "claim",
    "close",
    "dispatch",
    "drop",
    "find_open",
    "finish",
    "get",
    "join",
    "open",
    "params_of",
    "position",
    "release",
    "renew",
    "step",
    "supersede",
    "wait",
]
