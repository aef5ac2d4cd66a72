"""The table of periodic jobs. Processes of Celery load no models of `fleet`: `fleet.jobs.runs` has its statements in SQL."""

from django.db import models
from django.db.models.functions import Now


class Job(models.Model):
    """The runs of a periodic job, in times of the database's clock. `fleet.jobs.schedule` has the interval of each job."""

    name = models.TextField(primary_key=True)
    added_at = models.DateTimeField(db_default=Now())
    sent_at = models.DateTimeField(null=True, help_text="When its task was last sent to a queue.")
    unstarted = models.IntegerField(db_default=0, help_text="How often its task was sent since a worker last began the job.")
    started_at = models.DateTimeField(null=True, help_text="When a worker last began the job.")
    ended_at = models.DateTimeField(null=True, help_text="When a run last ended, also by an error.")
    done_at = models.DateTimeField(null=True, help_text="When a run last ended without an error.")
    outcome = models.TextField(db_default="", help_text="Of the run that ended last: `done` or `failed`; empty before.")

    class Meta:
        ordering = ("name",)
        default_permissions = ("view",)

    def __str__(self) -> str:
        return self.name
