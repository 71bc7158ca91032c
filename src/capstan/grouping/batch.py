"""Batch Jobs, alone or made by a CronJob: one PodGroup per Job."""

from __future__ import annotations

from capstan.grouping.gang import Gang, Workload, group_kind, min_member


def job(workload: Workload) -> Gang:
    """A Job may start with one pod unless `kai.scheduler/batch-min-member` says how many it needs."""
    return Gang(workload.top, "train", min_member=min_member(workload, 1))


def cron_job(workload: Workload) -> Gang:
    """Each run of a CronJob is a gang of its own."""
    run = next((owner for owner in workload.owners if group_kind(owner) == ("batch", "Job")), workload.top)
    return Gang(run, "train", min_member=min_member(workload, 1))
