"""The counters of an engine's health: what results of probes come to.

A good answer with a proof counts at once, and so does a bad one. A good answer without a proof is only noted. The answer counts
once a list of the runtime shows that the engine's instance has the engine's port, so that nobody else can have answered
(`engines.sightings`). Every statement leaves alone an engine that has moved since its probe, or has an open operation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection, transaction

from audit import trail
from audit.actions import Action
from audit.actors import SYSTEM
from common.settings import settings
from engines.lifecycle.moves import subject
from engines.models import IS_OPEN, Engine


@dataclass(frozen=True)
class Finding:
    """A result of a probe of an engine that had the given `seq`. `text` is the result in a word, as in `health.probes`.

    `answered_at`: when a good answer without a proof was noted; None for a result that counts by itself.
    """

    engine_id: UUID
    seq: int
    ok: bool
    text: str
    answered_at: datetime | None = None


_UNMOVED = f"""
e.id = r.id AND e.seq = r.seq AND e.status = 'running' AND NOT EXISTS (
    SELECT 1 FROM engines_operation o WHERE o.engine_id = e.id AND {IS_OPEN})
"""
"""SQL: the engine `e` is as it was when it was probed for the result `r`, and has no open operation."""

_COUNT = f"""
-- Every e.column on a right side is the value from before the probe.
UPDATE engines_engine e SET
    -- An audit row is due when the result changed, for the first result, and when the last row is old enough.
    health_row_at = CASE WHEN e.last_health_ok IS DISTINCT FROM r.ok OR e.health_row_at IS NULL
        OR e.health_row_at < now() - make_interval(secs => %(row_interval)s) THEN now() ELSE e.health_row_at END,
    last_health_ok = r.ok,
    last_health_at = CASE WHEN r.ok THEN coalesce(r.answered_at, now()) ELSE e.last_health_at END,
    -- Consecutive failures: a good result starts the count again, and so does a noted answer before a failure.
    health_failures = CASE WHEN r.ok THEN 0 WHEN e.answered_at IS NULL THEN e.health_failures + 1 ELSE 1 END,
    -- The start of the present run of good results; NULL after a failed probe.
    healthy_since = CASE WHEN r.ok THEN coalesce(e.healthy_since, now()) END,
    -- An engine that stayed healthy long enough gets all its automatic restarts back.
    restart_attempts = CASE WHEN r.ok AND e.healthy_since <= now() - make_interval(secs => %(reset)s)
        THEN 0 ELSE e.restart_attempts END,
    -- A good result that counts by itself had a proof.
    proves = e.proves OR (r.ok AND r.answered_at IS NULL),
    answered_at = NULL
-- One row per result.
FROM unnest(%(ids)s::uuid[], %(seqs)s::bigint[], %(oks)s::bool[], %(answers)s::timestamptz[]) AS r(id, seq, ok, answered_at)
WHERE {_UNMOVED}
-- A noted answer is confirmed only as long as it is the last answer.
AND (r.answered_at IS NULL OR e.answered_at = r.answered_at)
-- The last column: whether an audit row is due. now() is the same moment in the whole transaction.
RETURNING e.id, e.health_failures, e.health_row_at = now()
"""
"""SQL: apply the results to the counters of the engines."""


@transaction.atomic
def count(findings: Iterable[Finding]) -> dict[UUID, int]:
    """Apply results to the counters and write sampled rows; returns the failures in a row per engine whose result counted."""
    found = {each.engine_id: each for each in findings}
    if not found:
        return {}
    params: dict[str, Any] = {
        "row_interval": settings.ENV.health_row_interval_s,
        "reset": settings.ENV.restart_reset_s,
        "ids": list(found),
        "seqs": [each.seq for each in found.values()],
        "oks": [each.ok for each in found.values()],
        "answers": [each.answered_at for each in found.values()],
    }
    with connection.cursor() as cursor:
        cursor.execute(_COUNT, params)
        counted = cursor.fetchall()
    _record({engine_id: failures for engine_id, failures, has_row in counted if has_row}, found)
    return {engine_id: failures for engine_id, failures, _ in counted}


def _record(failures: Mapping[UUID, int], found: Mapping[UUID, Finding]) -> None:
    """Write the sampled rows of the engines in `failures`."""
    for engine in Engine.objects.filter(pk__in=failures).select_related("product"):
        result = found[engine.pk]
        metadata: dict[str, Any] = {"healthy": result.ok, "result": result.text, "failures": failures[engine.pk]}
        if result.ok:
            metadata["proven"] = result.answered_at is None
        trail.record(Action.HEALTH_CHECK, subject(engine), by=SYSTEM, metadata=metadata)


def note(answered: Sequence[tuple[UUID, int]]) -> None:
    """Note good answers without a proof, by engine and its `seq`; nothing counts yet."""
    if not answered:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE engines_engine e SET answered_at = now() FROM unnest(%s::uuid[], %s::bigint[]) AS r(id, seq)"
            f" WHERE {_UNMOVED}",
            [[engine_id for engine_id, _ in answered], [seq for _, seq in answered]],
        )
