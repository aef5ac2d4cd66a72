"""Addresses of the admin's pages."""

from django.urls import reverse

from engines.models import Engine


def page_of(engine: Engine) -> str:
    return reverse("admin:engines_engine_change", args=[engine.pk])
