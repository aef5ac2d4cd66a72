"""Removes old versions of products' engine environments when no engine needs them any more."""

from datetime import timedelta

from django.db.models import Exists, IntegerField, OuterRef
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Now

from common import statements
from engines.models import Engine, Operation
from policy.models import EngineEnv

GRACE = timedelta(hours=24)  # from the replacement of a version to its removal; outlasts any transaction that has read its number


def prune() -> int:
    """Remove versions replaced a day ago, unless a living engine has or is about to get the version; returns how many."""
    product, version = OuterRef("product"), OuterRef("version")
    replaced = EngineEnv.objects.filter(product=product, version__gt=version, created_at__lt=Now() - GRACE)
    had = Engine.objects.living().filter(product=product, env_version=version)
    opened = Operation.objects.open().annotate(given=Cast(KT("params__env_version"), IntegerField()))
    given = opened.filter(engine__product=product, given=version)
    with statements.limited(statements.JOB_S):
        return EngineEnv.objects.filter(Exists(replaced), ~Exists(had), ~Exists(given)).delete()[0]
