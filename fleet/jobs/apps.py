from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "fleet.jobs"
    verbose_name = "Periodic jobs"
