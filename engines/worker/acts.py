"""The acts: the effect of every kind of operation on the engine's instances."""

from collections.abc import Callable, Mapping

from common.settings import settings
from engines import unregistered
from engines.backends.base import BackendError, Ref
from engines.lifecycle import Outcome
from engines.models import BESIDE, Kind
from engines.worker.attempt import Attempt, Failed
from engines.worker.boot import bring_up


def _boot(attempt: Attempt) -> Outcome:
    """Start and wake: afterwards the instance exists, runs and is healthy."""
    return attempt.done(bring_up(attempt, attempt.ref, attempt.engine.key_hash))


def _provision(attempt: Attempt) -> Outcome:
    """A boot that says which data of its user there is already, in engines that the registry does not have."""
    engine = attempt.engine
    if found := unregistered.of_user(engine.product.slug, engine.user_id):
        attempt.note({BESIDE: found})
    return _boot(attempt)


def _restart(attempt: Attempt) -> Outcome:
    """The instance is stopped, then booted again."""
    _stop_instance(attempt, attempt.ref)
    return _boot(attempt)


def _stop(attempt: Attempt) -> Outcome:
    """Stop and sleep: afterwards the instance exists and does not run."""
    _stop_instance(attempt, attempt.ref)
    return attempt.done()


def _destroy(attempt: Attempt) -> Outcome:
    """Remove everything of the engine. Instances are stopped first with the usual grace, to let work in progress finish."""
    attempt.step("stopping")
    attempt.backend.retire(attempt.engine.pk, grace_s=settings.ENV.stop_grace_s)
    attempt.step("removing")
    attempt.backend.remove(attempt.engine.pk)
    return attempt.done()


def _rotate_key(attempt: Attempt) -> Outcome:
    """Boot a new incarnation with the pending key on the engine's volume.

    The old incarnation is removed last, after the new incarnation is healthy. If the boot fails, the old incarnation is put back.
    """
    _stop_instance(attempt, attempt.ref)
    try:
        booted = bring_up(attempt, attempt.next_ref, attempt.engine.pending_key_hash)
    except Failed as failure:
        return _return_to_old_key(attempt, failure)
    except BackendError as error:
        if error.retryable:
            raise
        return _return_to_old_key(attempt, Failed.by(error))
    attempt.step("removing_old")
    attempt.backend.destroy(attempt.ref)
    return attempt.done(booted)


def _return_to_old_key(attempt: Attempt, failure: Failed) -> Outcome:
    """Put the old incarnation back. The operation has failed anyway; the engine fails only if its old incarnation does."""
    attempt.check_runtime()
    attempt.step("returning_to_old_key")
    attempt.backend.destroy(attempt.next_ref)
    try:
        bring_up(attempt, attempt.ref, attempt.engine.key_hash)
    except Failed:
        return attempt.failed(failure)
    return attempt.failed_but_running(failure)


def _stop_instance(attempt: Attempt, ref: Ref) -> None:
    attempt.step("stopping")
    attempt.backend.stop(ref, grace_s=settings.ENV.stop_grace_s)


ACTS: Mapping[Kind, Callable[[Attempt], Outcome]] = {
    Kind.PROVISION: _provision,
    Kind.START: _boot,
    Kind.WAKE: _boot,
    Kind.RESTART: _restart,
    Kind.STOP: _stop,
    Kind.SLEEP: _stop,
    Kind.ROTATE_KEY: _rotate_key,
    Kind.DESTROY: _destroy,
}
"""The act by kind. Every act may be repeated after it died at any point, and raises Failed, BackendError or LeaseLost."""
