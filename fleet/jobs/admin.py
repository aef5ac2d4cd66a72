"""Periodic jobs in the admin: when each last ran."""

from typing import Any

from django.contrib import admin
from django.db.models import Case, F, QuerySet, TextField, Value, When
from django.http import HttpRequest

from common import wording
from common.admin import ReadOnlyAdmin, labelled
from fleet.jobs.models import Job
from fleet.jobs.runs import late
from fleet.jobs.schedule import all_jobs

STATES = {"late": "danger", "failed": "warning", "done": "success"}


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin):
    page_template = "admin/jobs/job/page.html"
    list_display = ("name", "every", "state", "began", "ended", "done")

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Job]":
        """The jobs of this version; `now` is `late`, or else the outcome of the run that ended last."""
        found: QuerySet[Job] = super().get_queryset(request).filter(name__in=[job.name for job in all_jobs()])
        is_late = When(name__in=[job.name for job in late()], then=Value("late"))
        return found.annotate(now=Case(is_late, default=F("outcome"), output_field=TextField()))

    def get_page(self, request: HttpRequest, found: Job) -> dict[str, Any]:
        times = {name: wording.moment(getattr(found, f"{name}_at")) for name in ("sent", "started", "ended", "done")}
        return {"every": self.every(found), "state": self.state(found), "times": times}

    @admin.display(description="Every")
    def every(self, job: Job) -> str:
        return wording.duration(next(each.every_s for each in all_jobs() if each.name == job.name) * 1000)

    @labelled("State", STATES)
    def state(self, job: Job) -> str:
        return str(vars(job)["now"]) or "-"

    @admin.display(description="Began (UTC)")
    def began(self, job: Job) -> str:
        return wording.moment(job.started_at)

    @admin.display(description="Ended")
    def ended(self, job: Job) -> str:
        return wording.moment(job.ended_at)

    @admin.display(description="Last done")
    def done(self, job: Job) -> str:
        return wording.moment(job.done_at)
