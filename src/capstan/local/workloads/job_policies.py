"""The rules of a Job beyond plain counting: what a failed pod means, when enough has succeeded, when an index fails."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from capstan.api.batch import Job, OnExitCodes, PodFailureRule
from capstan.api.core import Pod
from capstan.local.workloads.indexes import index_of, parse_indexes

FAILURE_COUNT_ANNOTATION = "batch.kubernetes.io/job-index-failure-count"


def failure_action(job: Job, pod: Pod) -> tuple[str, str]:
    """(action, explanation) for a failed pod: FailJob, FailIndex, Ignore or Count; Count when no rule matches."""
    policy = job.spec.pod_failure_policy
    for number, rule in enumerate(policy.rules if policy else []):
        if reason := _matches(rule, pod):
            return rule.action, f"{reason} matching {rule.action} rule at index {number}"
    return "Count", ""


def _matches(rule: PodFailureRule, pod: Pod) -> str:
    name = f"{pod.metadata.namespace}/{pod.metadata.name}"
    if rule.on_exit_codes is not None:
        return _matches_exit_code(rule.on_exit_codes, pod, name)
    for wanted in rule.on_pod_conditions:
        if any(c.type == wanted.type and c.status == wanted.status for c in pod.status.conditions):
            return f"Pod {name} has condition {wanted.type}"
    return ""


def _matches_exit_code(wanted: OnExitCodes, pod: Pod, name: str) -> str:
    for status in (*pod.status.init_container_statuses, *pod.status.container_statuses):
        ended = status.state.terminated
        if ended is None or (wanted.container_name and status.name != wanted.container_name):
            continue
        code = ended.get("exitCode", 0)
        if code and (code in wanted.values) == (wanted.operator == "In"):
            return f"Container {status.name} for pod {name} failed with exit code {code}"
    return ""


def succeeded(job: Job, completed: Collection[int]) -> bool:
    """Whether a rule of the success policy is met."""
    for rule in job.spec.success_policy.rules if job.spec.success_policy else []:
        wanted = parse_indexes(rule.succeeded_indexes) if rule.succeeded_indexes else None
        done = len([index for index in completed if wanted is None or index in wanted])
        needed = rule.succeeded_count if rule.succeeded_count is not None else len(wanted or ())
        if done >= needed:
            return True
    return False


def failures_of_index(job: Job, pods: Sequence[Pod], index: int) -> int:
    """How often an index has failed, for the annotation of its next pod."""
    failed = [
        pod
        for pod in pods
        if index_of(pod) == index and pod.status.phase == "Failed" and failure_action(job, pod)[0] != "Ignore"
    ]
    return max((int(pod.metadata.annotations.get(FAILURE_COUNT_ANNOTATION, 0)) + 1 for pod in failed), default=0)


def fails_index(job: Job, pod: Pod) -> bool:
    """Whether this failed pod is its index's last."""
    limit = job.spec.backoff_limit_per_index
    if limit is None:
        return False
    failures = int(pod.metadata.annotations.get(FAILURE_COUNT_ANNOTATION, 0))
    return failures >= limit or failure_action(job, pod)[0] == "FailIndex"
