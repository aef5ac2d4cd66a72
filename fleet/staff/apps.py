"""The Django app of staff, and Django's admin with our site."""

from django.apps import AppConfig
from django.contrib.admin import apps


class StaffConfig(AppConfig):
    name = "fleet.staff"
    label = "staff"
    verbose_name = "Staff"
    default = True


class AdminConfig(apps.AdminConfig):
    default = False  # `fleet.staff` alone stands for StaffConfig
    default_site = "fleet.staff.site.StaffSite"
