"""Notes which engines the runtime has and the registry does not."""

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import structlog
from django.db.models import Exists, OuterRef, Q

from common import image_references
from engines import identifiers
from engines.backends.base import Instance, Owner, State
from engines.errors import InvalidUserId
from engines.models import Engine, UnregisteredEngine
from policy.products import is_slug

log = structlog.get_logger(__name__)
HIGHEST = 2**31 - 2  # number of an incarnation that the registry can store, with room for one more
_NOTED = ("product_slug", "user_id", "image", "incarnation", "has_volume", "runs")


def find(found: Mapping[UUID, Sequence[Instance]], volumes: Mapping[UUID, Owner]) -> dict[UUID, UnregisteredEngine]:
    """The engines of the runtime's lists that are not registered, not stored.

    The registry is read after the runtime, because an engine's row exists before its first instance.
    """
    there = found.keys() | volumes.keys()
    registered = set(Engine.objects.filter(pk__in=there).values_list("pk", flat=True))
    return {pk: _describe(pk, found.get(pk, ()), volumes.get(pk)) for pk in there - registered}


def note(found: Mapping[UUID, Sequence[Instance]], volumes: Mapping[UUID, Owner]) -> None:
    """Store the engines of the runtime's lists that are not registered.

    Only rows with a change are written. An engine whose removal was asked for stays until its removal is recorded, or until it is
    registered again.
    """
    seen = find(found, volumes)
    known = {each.pk: each for each in UnregisteredEngine.objects.all()}
    changed = [each for pk, each in seen.items() if pk not in known or _facts(known[pk]) != _facts(each)]
    UnregisteredEngine.objects.bulk_create(changed, update_conflicts=True, unique_fields=["engine_id"], update_fields=_NOTED)
    is_gone = Q(pk__in=known.keys() - seen.keys(), asked_at=None)
    UnregisteredEngine.objects.filter(is_gone | Exists(Engine.objects.filter(pk=OuterRef("pk")))).delete()
    if new := seen.keys() - known.keys():
        log.warning("unregistered_engines_found", count=len(new))


def of_user(product_slug: str, user_id: str) -> list[str]:
    """The ids of the user's unregistered engines, sorted."""
    found = UnregisteredEngine.objects.present().filter(product_slug=product_slug, user_id=user_id)
    return sorted(str(pk) for pk in found.values_list("pk", flat=True))


def _facts(engine: UnregisteredEngine) -> list[object]:
    return [getattr(engine, name) for name in _NOTED]


def _describe(engine_id: UUID, instances: Iterable[Instance], volume: Owner | None) -> UnregisteredEngine:
    """What the labels say. The labels of the volume come first: they were written when the engine was provisioned."""
    newest = sorted(instances, key=lambda each: (each.ref.incarnation, each.ref.token), reverse=True)
    owners = [*([volume] if volume else []), *(each.owner for each in newest)]
    return UnregisteredEngine(
        engine_id=engine_id,
        product_slug=next((each.product for each in owners if is_slug(each.product)), ""),
        user_id=next((each.user_id for each in owners if _is_user_id(each.user_id)), ""),
        image=next((each.image for each in owners if _is_image(each.image)), ""),
        incarnation=min(newest[0].ref.incarnation, HIGHEST) if newest else 0,
        has_volume=volume is not None,
        runs=any(each.state == State.RUNNING for each in newest),
    )


# Whoever reaches the runtime can write any label: a text outside our grammars counts as none.


def _is_user_id(text: str) -> bool:
    try:
        identifiers.check_user_id(text)
    except InvalidUserId:
        return False
    return True


def _is_image(text: str) -> bool:
    try:
        image_references.parse(text)
    except ValueError:
        return False
    return True
