"""Ends every instance of a deployment when the machine's whole fleet goes down; the registry is not changed."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from engines.backends.base import Backend, BackendError, Ref, State
from engines.backends.process import processes

AT_ONCE = 128  # threads; they only wait
SETTLE_S = 0.3  # a launcher may outlive its worker and still start an engine after the first `list`

log = logging.getLogger(__name__)


def stop_all(backend: Backend, *, grace_s: float) -> Sequence[Ref]:
    """Stop every running instance, in parallel. Returns the instances that could not be stopped. Raises BackendUnavailable.

    All processes that start engines must have ended before: the call goes on as long as new instances appear.
    """
    failed: set[Ref] = set()

    def stop(ref: Ref) -> None:
        try:
            backend.stop(ref, grace_s=grace_s)
        except BackendError as error:
            log.error("engine %s, incarnation %s was not stopped: %s", ref.engine_id, ref.incarnation, error)
            failed.add(ref)

    def left() -> set[Ref]:
        return {found.ref for found in backend.list() if found.state is State.RUNNING} - failed

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="stop") as pool:
        while processes.wait_until(lambda: bool(left()), SETTLE_S):
            list(pool.map(stop, left()))
    return sorted(failed, key=lambda ref: (ref.engine_id, ref.incarnation))
