"""The verbs on engines, and the moves of engines from state to state with their audit rows."""

from engines.lifecycle.adoption import Adoptee, adopt
from engines.lifecycle.automatic import STOP_FACTOR, auto_restart, mark_failed, resume, stop_again, stop_oversized
from engines.lifecycle.backoff import next_restart_s
from engines.lifecycle.capacity import decide_disk, decide_room, disk_mb
from engines.lifecycle.checks import can, find
from engines.lifecycle.counters import Finding, count, note
from engines.lifecycle.disowning import disown
from engines.lifecycle.moves import subject
from engines.lifecycle.outcomes import Booted, Left, Outcome, failed, restart_failed, resume_failed, succeeded
from engines.lifecycle.products import delete_product, stop_suspended, suspend_product
from engines.lifecycle.provision import provision
from engines.lifecycle.settle import settle
from engines.lifecycle.verbs import cancel_sleep, destroy, restart, reveal_key, rotate_key, sleep, start, stop, wake

__all__ = [
    "STOP_FACTOR",
    "Adoptee",
    "Booted",
    "Finding",
    "Left",
    "Outcome",
    "adopt",
    "auto_restart",
    "can",
    "cancel_sleep",
    "count",
    "decide_disk",
    "decide_room",
    "delete_product",
    "destroy",
    "disk_mb",
    "disown",
    "failed",
    "find",
    "mark_failed",
    "next_restart_s",
    "note",
    "provision",
    "restart",
    "restart_failed",
    "resume",
    "resume_failed",
    "reveal_key",
    "rotate_key",
    "settle",
    "sleep",
    "start",
    "stop",
    "stop_again",
    "stop_oversized",
    "stop_suspended",
    "subject",
    "succeeded",
    "suspend_product",
    "wake",
]
