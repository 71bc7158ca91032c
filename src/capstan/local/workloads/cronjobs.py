"""CronJobs: a Job for the latest scheduled time that has come, and old Jobs cleared away."""

from __future__ import annotations

from typing import Any

import msgspec

from capstan import kube
from capstan.api import clock
from capstan.api.batch import CronJob, Job
from capstan.api.cron import InvalidSchedule, Schedule
from capstan.api.resources import CRON_JOBS, JOBS
from capstan.local.workloads.caches import Caches, patch_status
from capstan.local.workloads.children import Children
from capstan.local.workloads.jobs import finished_condition
from capstan.local.workloads.pods import owner_reference

_TIME_ANNOTATION = "batch.kubernetes.io/cronjob-scheduled-timestamp"
_LONGEST_BACKLOG_SECONDS = 7 * 86400.0
"""How far back a missed time is looked for; only the latest one is made up for."""


class CronJobController(kube.Controller[kube.Key]):
    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._caches = caches
        self._recorder = caches.recorder("cronjob-controller")
        self._cron_jobs = caches.of(CRON_JOBS)
        self._jobs = Children(caches, JOBS, CRON_JOBS, self._recorder)
        self.caches = (self._cron_jobs, caches.of(JOBS))
        self._cron_jobs.on_change(lambda change: self.queue.add(change.object.key))
        caches.of(JOBS).on_change(self._job_changed)

    def _job_changed(self, change: kube.Change[Job]) -> None:
        owner = change.object.metadata.controller()
        if owner is not None and owner.kind == "CronJob":
            self.queue.add((change.object.metadata.namespace, owner.name))

    async def reconcile(self, key: kube.Key) -> float | None:
        owner = self._cron_jobs.objects.get(key)
        if owner is None or owner.metadata.deletion_timestamp is not None:
            return None
        await self._clear(owner)
        scheduled, again = owner.status.last_schedule_time, None
        if not owner.spec.suspend:
            try:
                schedule = Schedule(owner.spec.schedule, owner.spec.time_zone)
            except InvalidSchedule as error:
                self._recorder.emit(owner, "Warning", "UnparseableSchedule", str(error))
            else:
                scheduled, again = await self._start_due(owner, schedule)
        await self._report(owner, scheduled)
        return again

    async def _start_due(self, owner: CronJob, schedule: Schedule) -> tuple[str | None, float | None]:
        """(last scheduled time, seconds until the next one)."""
        now = self._caches.now()
        last = owner.status.last_schedule_time
        earliest = clock.parse(last or owner.metadata.creation_timestamp)
        backlog = owner.spec.starting_deadline_seconds
        earliest = max(earliest, now - (_LONGEST_BACKLOG_SECONDS if backlog is None else backlog))
        due = upcoming = None
        for upcoming in schedule.times_after(earliest):
            if upcoming > now:
                break
            due = upcoming
        again = None if upcoming is None or upcoming <= now else upcoming - now
        if due is None:
            return last, again
        active = [job for job in self._jobs.of(owner) if finished_condition(job) is None]
        if active and owner.spec.concurrency_policy == "Forbid":
            message = "Not starting job because prior execution is running and concurrency policy is Forbid"
            self._recorder.emit(owner, "Normal", "JobAlreadyActive", message)
            return last, again
        if owner.spec.concurrency_policy == "Replace":
            await self._jobs.delete(owner, active)
        await self._jobs.create(owner, [self._body(owner, due)])
        return clock.render(due), again

    @staticmethod
    def _body(owner: CronJob, due: float) -> kube.Body:
        template = owner.spec.job_template
        return {
            "apiVersion": JOBS.api_version,
            "kind": JOBS.kind,
            "metadata": {
                # One name per scheduled time: the same time never starts twice.
                "name": f"{owner.metadata.name}-{int(due) // 60}",
                "namespace": owner.metadata.namespace,
                "labels": template.metadata.labels,
                "annotations": {**template.metadata.annotations, _TIME_ANNOTATION: clock.render(due)},
                "ownerReferences": [owner_reference(CRON_JOBS, owner)],
            },
            "spec": template.spec,
        }

    async def _clear(self, owner: CronJob) -> None:
        """Keeps the newest finished Jobs of each outcome."""
        limits = (
            ("Complete", owner.spec.successful_jobs_history_limit),
            ("Failed", owner.spec.failed_jobs_history_limit),
        )
        for outcome, limit in limits:
            ended = [
                job
                for job in self._jobs.of(owner)
                if (condition := finished_condition(job)) and condition.type == outcome
            ]
            ended.sort(key=lambda job: (job.status.start_time or "", job.metadata.name), reverse=True)
            await self._jobs.delete(owner, ended[limit:])

    async def _report(self, owner: CronJob, scheduled: str | None) -> None:
        jobs = self._jobs.of(owner)
        active = [job for job in jobs if finished_condition(job) is None and not job.metadata.deletion_timestamp]
        ends = [job.status.completion_time for job in jobs if job.status.completion_time]
        references = [
            {
                "apiVersion": JOBS.api_version,
                "kind": JOBS.kind,
                "namespace": job.metadata.namespace,
                "name": job.metadata.name,
                "uid": job.metadata.uid,
            }
            for job in sorted(active, key=lambda job: job.metadata.name)
        ]
        status: dict[str, Any] = {
            "active": references or None,
            "lastScheduleTime": scheduled,
            "lastSuccessfulTime": max([*ends, owner.status.last_successful_time or ""]) or None,
        }
        known = {"active": None, "lastScheduleTime": None, "lastSuccessfulTime": None}
        await patch_status(self._caches, CRON_JOBS, owner, status, known | msgspec.to_builtins(owner.status))
