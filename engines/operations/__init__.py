"""The operation: what was promised to be done to an engine. Its row is opened, sent, claimed, leased, ended and waited for.

What an operation does to its engine is up to `worker`, and what its end means for the engine up to `lifecycle`.
"""

from engines.operations.ending import close, supersede
from engines.operations.intent import find_open, get, join, open, params_of  # noqa: A004 (`operations.open` reads as it should)
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
