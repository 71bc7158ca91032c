"""`batch/v1` as far as the job controller and the grouper read it."""

from __future__ import annotations

from typing import Any

import msgspec

from capstan.api.base import Condition, Object, ObjectMeta, ObjectReference, Struct
from capstan.api.selectors import LabelSelector


class OnExitCodes(Struct):
    container_name: str = ""
    operator: str = "In"
    values: list[int] = []


class OnPodCondition(Struct):
    type: str = ""
    status: str = "True"


class PodFailureRule(Struct):
    """`action` is FailJob, FailIndex, Ignore or Count; the first rule that matches a failed pod decides."""

    action: str = ""
    on_exit_codes: OnExitCodes | None = None
    on_pod_conditions: list[OnPodCondition] = []


class PodFailurePolicy(Struct):
    rules: list[PodFailureRule] = []


class SuccessRule(Struct):
    succeeded_indexes: str = ""
    succeeded_count: int | None = None


class SuccessPolicy(Struct):
    rules: list[SuccessRule] = []


class JobSpec(Struct):
    parallelism: int | None = None
    completions: int | None = None
    backoff_limit: int = 6
    active_deadline_seconds: int | None = None
    ttl_seconds_after_finished: int | None = None
    completion_mode: str = "NonIndexed"
    suspend: bool = False
    manual_selector: bool = False
    pod_failure_policy: PodFailurePolicy | None = None
    success_policy: SuccessPolicy | None = None
    backoff_limit_per_index: int | None = None
    max_failed_indexes: int | None = None
    pod_replacement_policy: str = "TerminatingOrFailed"
    managed_by: str = "kubernetes.io/job-controller"
    selector: LabelSelector | None = None
    template: dict[str, Any] = {}


class UncountedTerminatedPods(Struct):
    """Uids of finished pods that still carry the tracking finalizer or are not yet in the counters."""

    succeeded: list[str] = []
    failed: list[str] = []


class JobStatus(Struct):
    active: int = 0
    ready: int = 0
    succeeded: int = 0
    failed: int = 0
    terminating: int = 0
    completed_indexes: str = ""
    failed_indexes: str = ""
    uncounted_terminated_pods: UncountedTerminatedPods | None = None
    start_time: str | None = None
    completion_time: str | None = None
    conditions: list[Condition] = []


class Job(Object):
    spec: JobSpec = msgspec.field(default_factory=JobSpec)
    status: JobStatus = msgspec.field(default_factory=JobStatus)


class JobTemplate(Struct):
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)
    spec: dict[str, Any] = {}


class CronJobSpec(Struct):
    schedule: str = ""
    time_zone: str | None = None
    starting_deadline_seconds: int | None = None
    concurrency_policy: str = "Allow"
    suspend: bool = False
    job_template: JobTemplate = msgspec.field(default_factory=JobTemplate)
    successful_jobs_history_limit: int = 3
    failed_jobs_history_limit: int = 1


class CronJobStatus(Struct):
    active: list[ObjectReference] = []
    last_schedule_time: str | None = None
    last_successful_time: str | None = None


class CronJob(Object):
    spec: CronJobSpec = msgspec.field(default_factory=CronJobSpec)
    status: CronJobStatus = msgspec.field(default_factory=CronJobStatus)
