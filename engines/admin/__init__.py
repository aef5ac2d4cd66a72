"""Engines, operations, and products with their engines, for staff. Django finds the pages by importing this package."""

from django.contrib import admin

from engines.admin.engines import EngineAdmin
from engines.admin.operations import OperationAdmin
from engines.admin.products import ProductWithEnginesAdmin
from engines.admin.unregistered import UnregisteredEngineAdmin
from policy.models import Product

__all__ = ["EngineAdmin", "OperationAdmin", "ProductWithEnginesAdmin", "UnregisteredEngineAdmin"]

admin.site.register(Product, ProductWithEnginesAdmin)
