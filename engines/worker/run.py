"""Carries an operation out: claims the operation, acts, and settles.

Between any two backend calls the attempt notes a step, which fails once the lease is lost. A worker that lost its lease stops the
attempt and reconciles the engine, because the worker's last call of the backend may have come too late.
"""

from uuid import UUID

import structlog
from django.db import InterfaceError, OperationalError

from common import context
from common.settings import settings
from engines import backends, lifecycle, operations, reconcile
from engines.backends.base import BackendError
from engines.lifecycle import Outcome
from engines.models import Kind, Operation
from engines.operations import Lease, LeaseLost
from engines.worker import renewal
from engines.worker.acts import ACTS
from engines.worker.attempt import EXHAUSTED, Attempt, Failed

log = structlog.get_logger(__name__)

RETRY_MAX_S = 10.0  # longest pause before the next attempt after the backend did not answer


def run(operation_id: UUID) -> None:
    """Claim and carry out the operation; returns without effect when the operation cannot be claimed.

    Every failure of an engine or its runtime ends in an audit row, or in a later attempt. If PostgreSQL goes away in the middle,
    the operation is given back once PostgreSQL is there again. Any other exception that leaves `run` is a bug: the lease then
    lapses, and a further attempt is made.
    """
    lease = operations.claim(operation_id)
    if lease is None:
        return
    try:
        _run_claimed(lease)
    except (OperationalError, InterfaceError) as error:
        if lease.is_last:  # the time for tries is over: the attempt counts, and the operation ends after a few more
            raise
        cause = type(error.__cause__ or error).__name__
        log.warning("operation_interrupted", operation_id=str(operation_id), attempt=lease.attempt, error=cause)
        renewal.give_back(lease)


def _run_claimed(lease: Lease) -> None:
    operation = Operation.objects.select_related("engine__product").get(pk=lease.operation_id)
    about = structlog.contextvars.bound_contextvars(operation_id=str(lease.operation_id))
    with context.of_call(operation.call), about, renewal.held(lease):
        try:
            _carry_out(Attempt(lease, operation, backends.get()))
        except LeaseLost:
            log.warning("lease_lost", attempt=lease.attempt)
            reconcile.engine(operation.engine_id)


def _carry_out(attempt: Attempt) -> None:
    """Act, and commit the outcome. Raises LeaseLost."""
    outcome = _act(attempt)
    if outcome is None:
        return
    if not lifecycle.settle(attempt.lease, attempt.operation, outcome):
        raise LeaseLost(attempt.lease.operation_id)
    log.info("operation_ended", kind=attempt.operation.kind, action=outcome.action.value, error=outcome.error[0] or None)


def _act(attempt: Attempt) -> Outcome | None:
    """The attempt's outcome; None when the backend did not answer and the operation was given back for a later attempt."""
    try:
        with attempt.recording_evictions(), attempt.on_one_runtime():
            _check_attempts(attempt)
            return ACTS[Kind(attempt.operation.kind)](attempt)
    except Failed as failure:
        return attempt.failed(failure)
    except BackendError as error:
        if not error.retryable or attempt.lease.is_last:
            return attempt.failed(Failed.by(error))
        _give_back(attempt, error)
        return None


def _check_attempts(attempt: Attempt) -> None:
    """Raise Failed when too many earlier attempts died in the middle."""
    if attempt.lease.is_exhausted:
        raise Failed(EXHAUSTED, f"Given up: {settings.ENV.operation_max_attempts} attempts died in the middle.")


def _give_back(attempt: Attempt, error: BackendError) -> None:
    """Give the operation back for a claim after a pause, which doubles with every attempt. Raises LeaseLost."""
    log.warning("operation_returned", error=error.code, attempt=attempt.lease.attempt)
    if not operations.release(attempt.lease, delay_s=min(2.0 ** min(attempt.lease.attempt, 5), RETRY_MAX_S)):
        raise LeaseLost(attempt.lease.operation_id) from error
