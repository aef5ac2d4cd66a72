"""Measures engines' volumes, and acts on volumes that take too much disk space.

Above its limit, an engine gets a `disk_exceeded` row, and nothing starts it (`lifecycle.decide_disk`). Above STOP_FACTOR times
its limit, it is stopped. docs/decisions/0914 gives the reasons.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from threading import Lock
from uuid import UUID

import structlog
from django.db import connection, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM
from common import times
from common.settings import settings
from engines import backends, hosts, lifecycle
from engines.backends.base import BackendError, BackendUnavailable, ImageMissing, Usage
from engines.models import Engine, Status
from policy.models import Product

BUDGET_S = 10.0  # of one sweep, and of one call of the backend
CHUNK = 100  # volumes measured by one call
IDLE_FACTOR = 60  # volumes of engines that do not run are measured so many times less often
HOST_EVERY_S = 300.0  # the host's disk is measured at least so often, also without any engine
MAY_WRITE = (Status.RUNNING, Status.PROVISIONING, Status.FAILED)

log = structlog.get_logger(__name__)
_sweeping = Lock()


def sweep() -> int:
    """Measure volumes that are due, longest due first, for BUDGET_S seconds; returns how many were measured.

    A second call at the same time does nothing.
    """
    if not _sweeping.acquire(blocking=False):
        return 0
    try:
        return _sweep()
    except (BackendUnavailable, ImageMissing) as error:
        log.warning("disk_not_measured", error=str(error))
        return 0
    finally:
        _sweeping.release()


def _sweep() -> int:
    deadline, measured = time.monotonic() + BUDGET_S, 0
    while time.monotonic() < deadline:
        due = _due()
        if not due and not hosts.is_disk_due(HOST_EVERY_S):
            break
        connection.close()  # not held while volumes are measured
        for usage in _measure(list(due), deadline):
            _note_host(usage)
            measured += _note(usage, due)
        if len(due) < CHUNK:
            break
    return measured


def _due() -> dict[UUID, int]:
    """Up to CHUNK engines whose volumes are due: the `seq` of each by its id, the longest due first."""
    due = Engine.objects.living().filter(Q(disk_due_at=None) | Q(disk_due_at__lte=Now()))
    return dict(due.order_by(F("disk_due_at").asc(nulls_first=True), "pk").values_list("pk", "seq")[:CHUNK])


def _measure(engine_ids: Sequence[UUID], deadline: float) -> Iterator[Usage]:
    """Measure the volumes until `deadline`; halves them again and again to find a volume that cannot be measured.

    Raises BackendUnavailable, and ImageMissing when no volume can be measured.
    """
    if (left_s := deadline - time.monotonic()) <= 0:
        return
    try:
        yield backends.get().measure(engine_ids, budget_s=left_s)
    except (BackendUnavailable, ImageMissing):
        raise
    except BackendError as error:
        if len(engine_ids) > 1:
            half = len(engine_ids) // 2
            yield from _measure(engine_ids[:half], deadline)
            yield from _measure(engine_ids[half:], deadline)
            return
        log.warning("volume_not_measured", engine_id=str(*engine_ids), code=error.code, error=str(error))
        later = Now() + timedelta(seconds=settings.ENV.disk_check_interval_s)
        Engine.objects.filter(pk__in=engine_ids).update(disk_due_at=later)


def _note_host(usage: Usage) -> None:
    is_low = usage.free_share * 100 < settings.ENV.host_disk_low_percent
    hosts.note_disk(usage.total_mb, usage.free_mb, is_low=is_low)
    if is_low:
        log.warning(
            "host_disk_low", free_mb=usage.free_mb, total_mb=usage.total_mb, free_percent=round(usage.free_share * 100, 1)
        )


def _note(usage: Usage, seqs: Mapping[UUID, int]) -> int:
    """Store what was measured, and stop the engines that take far too much; returns how many were measured.

    `seqs`: the moves of each engine before the measurement. An engine that has moved since is measured again at once: it may have
    written between the measurement and its stop.
    """
    changed = _store(usage, seqs)
    for engine in changed:
        far_above = (engine.disk_used_mb or 0) > lifecycle.STOP_FACTOR * engine.disk_mb
        if far_above and lifecycle.stop_oversized(engine.pk, by=SYSTEM) is not None:
            log.warning("engine_stopped_for_disk", engine_id=str(engine.pk), used_mb=engine.disk_used_mb, limit_mb=engine.disk_mb)
    return len(changed)


@transaction.atomic
def _store(usage: Usage, seqs: Mapping[UUID, int]) -> list[Engine]:
    """Update the engines' rows, and write the audit rows of those that crossed their limit; returns the updated engines.

    A row that is locked by another transaction is left for the next call: nobody waits for a measurement.
    """
    engines = list(Engine.objects.living().locked(skip_locked=True).filter(pk__in=usage.used_mb).order_by("pk"))
    products = Product.objects.in_bulk({engine.product_id for engine in engines})
    limits = {product_id: lifecycle.disk_mb(product) for product_id, product in products.items()}
    now = times.database_now()
    for engine in engines:
        engine.product = products[engine.product_id]
        engine.disk_mb = limits[engine.product_id]
        _judge(engine, usage.used_mb[engine.pk], is_least=engine.pk in usage.at_least, now=now)
        engine.disk_due_at = None if engine.seq != seqs[engine.pk] else now + timedelta(seconds=_pause_s(engine))
    Engine.objects.bulk_update(engines, ["disk_mb", "disk_used_mb", "disk_measured_at", "disk_due_at", "disk_exceeded_at"])
    return engines


def _judge(engine: Engine, used_mb: int, *, is_least: bool, now: datetime) -> None:
    """Set the engine's columns to what was measured; a crossing of the limit gets its audit row.

    If the volume takes at least `used_mb`, an earlier and larger measurement stays: a crossing back needs a whole measurement.
    """
    engine.disk_used_mb = max(used_mb, engine.disk_used_mb or 0) if is_least else used_mb
    engine.disk_measured_at = now
    is_above = engine.disk_used_mb > engine.disk_mb
    if is_above == (engine.disk_exceeded_at is not None):
        return
    engine.disk_exceeded_at = now if is_above else None
    action = Action.DISK_EXCEEDED if is_above else Action.DISK_REDUCED
    metadata = {"used_mb": engine.disk_used_mb, "limit_mb": engine.disk_mb}
    trail.record(action, lifecycle.subject(engine), by=SYSTEM, metadata=metadata)
    (log.warning if is_above else log.info)(action.value, engine_id=str(engine.pk), **metadata)


def _pause_s(engine: Engine) -> float:
    return settings.ENV.disk_check_interval_s * (1 if engine.status in MAY_WRITE else IDLE_FACTOR)
