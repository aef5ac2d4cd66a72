"""Old versions of products' engine environments: removed when no engine needs them any more."""

from datetime import timedelta

from django.db.models import Exists, IntegerField, OuterRef
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Now

from engines.models import Engine, Operation
from policy.models import EngineEnv

GRACE = timedelta(hours=24)  # after a version was replaced: longer than any transaction that has just read its number


def prune() -> int:
    """Remove every version that was replaced a day ago and that no living engine has or is being given; returns how many."""
    product, version = OuterRef("product"), OuterRef("version")
    replaced = EngineEnv.objects.filter(product=product, version__gt=version, created_at__lt=Now() - GRACE)
    had = Engine.objects.living().filter(product=product, env_version=version)
    opened = Operation.objects.open().annotate(given=Cast(KT("params__env_version"), IntegerField()))
    given = opened.filter(engine__product=product, given=version)
    return EngineEnv.objects.filter(Exists(replaced), ~Exists(had), ~Exists(given)).delete()[0]
