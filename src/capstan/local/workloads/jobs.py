"""Jobs: pods until enough have succeeded, each finished pod counted exactly once.

Every pod carries the tracking finalizer until its uid is written into `status.uncountedTerminatedPods`; only then the
pod may vanish, and only after that the uid becomes a number. A crash between any two steps repeats a step and counts
nothing twice.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from capstan import kube
from capstan.api import clock
from capstan.api.base import Condition
from capstan.api.batch import Job
from capstan.api.core import Pod
from capstan.api.resources import JOBS, PODS
from capstan.local.workloads import pods as pod_state
from capstan.local.workloads.caches import Caches, patch_status, wire_conditions
from capstan.local.workloads.children import Children
from capstan.local.workloads.indexes import index_of, parse_indexes, render_indexes
from capstan.local.workloads.job_policies import (
    FAILURE_COUNT_ANNOTATION,
    fails_index,
    failure_action,
    failures_of_index,
    succeeded,
)

MANAGED_BY = "kubernetes.io/job-controller"
"""Jobs with another `spec.managedBy` belong to another controller."""
FINALIZER = "batch.kubernetes.io/job-tracking"
INDEX_KEY = "batch.kubernetes.io/job-completion-index"
"""Both the label and the annotation of an indexed job's pods."""
_BACKOFF_SECONDS = 10.0
_LONGEST_BACKOFF_SECONDS = 600.0
_BURST = 500


class Tally:
    """What the pods of a job amount to right now."""

    def __init__(self, job: Job, pods: list[Pod]) -> None:
        status = job.status
        uncounted = status.uncounted_terminated_pods
        self.counted_succeeded, self.counted_failed = status.succeeded, status.failed
        self.succeeded_uids = list(uncounted.succeeded) if uncounted else []
        self.failed_uids = list(uncounted.failed) if uncounted else []
        self.completed = parse_indexes(status.completed_indexes)
        self.failed_indexes = parse_indexes(status.failed_indexes)
        self.fatal = ""
        """Why the pod failure policy ends the job, if it does."""
        self.active: list[Pod] = []
        self.terminating = 0
        self.tracked: dict[str, Pod] = {}
        known = {*self.succeeded_uids, *self.failed_uids}
        for pod in pods:
            finished = pod_state.is_finished(pod)
            if not finished and pod.metadata.deletion_timestamp is not None:
                self.terminating += 1
            elif not finished:
                self.active.append(pod)
                continue
            if FINALIZER not in pod.metadata.finalizers:
                continue
            self.tracked[pod.metadata.uid] = pod
            if pod.metadata.uid in known:
                # Its count may have been written before its fate was judged: it ended in the middle of a pass.
                if pod.status.phase == "Failed":
                    self._judge(job, pod)
                continue
            if pod.status.phase == "Succeeded":
                index = index_of(pod)
                if job.spec.completion_mode != "Indexed":
                    self.succeeded_uids.append(pod.metadata.uid)
                elif index is not None and index not in self.completed and index < (job.spec.completions or 0):
                    self.succeeded_uids.append(pod.metadata.uid)
                    self.completed.add(index)
            elif finished or job.spec.pod_replacement_policy != "Failed":
                # A pod on its way out counts as failed at once: it may never get to say so.
                self._count_failure(job, pod)
            else:
                del self.tracked[pod.metadata.uid]

    def _judge(self, job: Job, pod: Pod) -> str:
        action, reason = failure_action(job, pod)
        if action == "FailJob":
            self.fatal = self.fatal or reason
        return action

    def _count_failure(self, job: Job, pod: Pod) -> None:
        if self._judge(job, pod) != "Ignore":
            self.failed_uids.append(pod.metadata.uid)
        index = index_of(pod)
        if index is not None and pod.status.phase == "Failed" and fails_index(job, pod):
            self.failed_indexes.add(index)

    @property
    def succeeded(self) -> int:
        return self.counted_succeeded + len(self.succeeded_uids)

    @property
    def failed(self) -> int:
        return self.counted_failed + len(self.failed_uids)

    def settle(self) -> None:
        """Turns the uids whose pods are no longer tracked into numbers."""
        for uid in [uid for uid in self.succeeded_uids if uid not in self.tracked]:
            self.succeeded_uids.remove(uid)
            self.counted_succeeded += 1
        for uid in [uid for uid in self.failed_uids if uid not in self.tracked]:
            self.failed_uids.remove(uid)
            self.counted_failed += 1


class JobController(kube.Controller[kube.Key]):
    def __init__(self, caches: Caches) -> None:
        super().__init__()
        self._caches = caches
        self._recorder = caches.recorder("job-controller")
        self._jobs = caches.of(JOBS)
        self._pods = Children(caches, PODS, JOBS, self._recorder)
        self._tracked = caches.pods.index(
            lambda pod: (
                [(pod.metadata.namespace, owner.name)]
                if FINALIZER in pod.metadata.finalizers and (owner := pod.metadata.controller()) and owner.kind == "Job"
                else []
            )
        )
        self.caches = (self._jobs, caches.pods)
        self._jobs.on_change(lambda change: self.queue.add(change.object.key))
        self._pods.enqueue(self.queue, self._jobs)

    async def reconcile(self, key: kube.Key) -> float | None:
        job = self._jobs.objects.get(key)
        uid = job.metadata.uid if job else ""
        strays = [pod for pod in self._tracked.get(key).values() if pod_state.pod_owner(pod) != uid]
        await self._untrack(strays)
        if job is None:
            return None
        if finished := finished_condition(job):
            await self._untrack([pod for pod in self._pods.of(job) if FINALIZER in pod.metadata.finalizers])
            return await self._expire(job, finished)
        if job.metadata.deletion_timestamp is not None or job.spec.managed_by != MANAGED_BY:
            return None
        return await self._progress(job, await self._pods.claim(job, job.spec.selector))

    async def _progress(self, job: Job, pods: list[Pod]) -> float | None:
        now = self._caches.now()
        tally = Tally(job, pods)
        conditions = {condition.type: condition for condition in job.status.conditions}
        started = job.status.start_time
        if started is None and not job.spec.suspend:
            started = clock.render(now)
        verdict, again = self._verdict(job, tally, conditions, started, now)
        if verdict is not None:
            conditions.setdefault(verdict.type, verdict)
            await self._stop(job, tally.active)
        elif job.spec.suspend:
            await self._stop(job, tally.active)
            started = None
        suspend(job, conditions, now)
        await self._write(job, tally, conditions, started)
        await self._untrack(list(tally.tracked.values()))
        # The job and the pods are read again: everything below builds on what is known to be written.
        job = self._jobs.objects.get(job.key, job)
        tally = Tally(job, self._pods.of(job))
        tally.settle()
        if verdict is None and not tally.fatal and not job.spec.suspend:
            pause = await self._manage(job, tally, now)
            again = min((wait for wait in (again, pause) if wait is not None), default=None)
            tally = Tally(job, self._pods.of(job))
            tally.settle()
        elif verdict is not None and not (tally.active or tally.tracked or tally.terminating):
            final = "Complete" if verdict.type == "SuccessCriteriaMet" else "Failed"
            conditions[final] = condition(final, verdict.reason, verdict.message, now)
            if final == "Complete":
                self._recorder.emit(job, "Normal", "Completed", "Job completed")
            else:
                self._recorder.emit(job, "Warning", verdict.reason, verdict.message)
        await self._write(job, tally, conditions, started)
        return again

    def _verdict(
        self, job: Job, tally: Tally, conditions: dict[str, Condition], started: str | None, now: float
    ) -> tuple[Condition | None, float | None]:
        """The condition that ends the job, if it is decided, and when its deadline comes otherwise."""
        for kind in ("SuccessCriteriaMet", "FailureTarget"):
            if kind in conditions:
                return conditions[kind], None
        if tally.fatal:
            return condition("FailureTarget", "PodFailurePolicy", tally.fatal, now), None
        if (ended := self._indexes_failed(job, tally)) is not None:
            return condition("FailureTarget", *ended, now), None
        if tally.failed > job.spec.backoff_limit or self._restarted_too_often(job, tally):
            message = "Job has reached the specified backoff limit"
            return condition("FailureTarget", "BackoffLimitExceeded", message, now), None
        left = None
        if job.spec.active_deadline_seconds is not None and not job.spec.suspend:
            left = clock.parse(started) + job.spec.active_deadline_seconds - now
            if left <= 0:
                message = "Job was active longer than specified deadline"
                return condition("FailureTarget", "DeadlineExceeded", message, now), None
        if not job.spec.suspend and succeeded(job, tally.completed):
            message = "Matched rules at index 0"
            return condition("SuccessCriteriaMet", "SuccessPolicy", message, now), None
        if job.spec.completions is None:
            done = tally.succeeded > 0 and not tally.active
        else:
            done = tally.succeeded >= job.spec.completions
        if done and not job.spec.suspend:
            message = "Reached expected number of succeeded pods"
            return condition("SuccessCriteriaMet", "CompletionsReached", message, now), None
        return None, left

    @staticmethod
    def _indexes_failed(job: Job, tally: Tally) -> tuple[str, str] | None:
        """(reason, message) when too many indexes have failed, or all that is left has."""
        limit = job.spec.max_failed_indexes
        if limit is not None and len(tally.failed_indexes) > limit:
            return "MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes"
        if tally.failed_indexes and len(tally.failed_indexes | tally.completed) >= (job.spec.completions or 0):
            return "FailedIndexes", "Job has failed indexes"
        return None

    @staticmethod
    def _restarted_too_often(job: Job, tally: Tally) -> bool:
        """With restartPolicy OnFailure the restarts of containers count against the limit."""
        if (job.spec.template.get("spec") or {}).get("restartPolicy") != "OnFailure":
            return False
        restarts = sum(status.restart_count for pod in tally.active for status in pod.status.container_statuses)
        return restarts > 0 if job.spec.backoff_limit == 0 else restarts >= job.spec.backoff_limit

    async def _manage(self, job: Job, tally: Tally, now: float) -> float | None:
        """Creates or deletes pods; returns the seconds to wait when failures hold creation back."""
        parallelism = 1 if job.spec.parallelism is None else job.spec.parallelism
        if job.spec.completions is None:
            wanted = len(tally.active) if tally.succeeded else parallelism
        else:
            wanted = min(parallelism, job.spec.completions - tally.succeeded - len(tally.failed_indexes))
        if job.spec.pod_replacement_policy == "Failed":
            wanted -= tally.terminating
        surplus = len(tally.active) - wanted
        if surplus > 0:
            ranked = sorted(tally.active, key=lambda pod: (pod_state.is_ready(pod), pod.metadata.name))
            await self._stop(job, ranked[:surplus])
        missing = min(-surplus, _BURST)
        if missing <= 0:
            return None
        if (pause := self._backoff(job, tally, now)) > 0:
            return pause
        if job.spec.completion_mode == "Indexed":
            pods = self._pods.of(job)
            taken = tally.completed | tally.failed_indexes | {index_of(pod) for pod in pods if not is_ended(pod)}
            free = [index for index in range(job.spec.completions or 0) if index not in taken]
            bodies = [self._body(job, index, failures_of_index(job, pods, index)) for index in free[:missing]]
        else:
            bodies = [self._body(job, None)] * missing
        await self._pods.create(job, bodies)
        if -surplus > _BURST:
            self.queue.add(job.key)
        return None

    def _backoff(self, job: Job, tally: Tally, now: float) -> float:
        """Seconds until a failed pod may be replaced: 10 s, doubled with every failure since the last success."""
        ends = [(finished_at(pod), pod.status.phase) for pod in self._pods.of(job) if pod_state.is_finished(pod)]
        failures = 0
        for _, phase in sorted(ends, reverse=True):
            if phase != "Failed":
                break
            failures += 1
        if not failures:
            return 0.0
        last = max(end for end, phase in ends if phase == "Failed")
        pause: float = min(_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 20), _LONGEST_BACKOFF_SECONDS)
        return max(0.0, last + pause - now)

    @staticmethod
    def _body(job: Job, index: int | None, failures: int = 0) -> kube.Body:
        body = pod_state.from_template(JOBS, job, job.spec.template)
        metadata, uid, name = body["metadata"], job.metadata.uid, job.metadata.name
        metadata["finalizers"] = [FINALIZER]
        metadata["labels"] |= {"batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": name}
        metadata["labels"] |= {"controller-uid": uid, "job-name": name}
        if index is not None:
            metadata["generateName"] = f"{name}-{index}-"
            metadata["labels"][INDEX_KEY] = metadata["annotations"][INDEX_KEY] = str(index)
            if job.spec.backoff_limit_per_index is not None:
                metadata["annotations"][FAILURE_COUNT_ANNOTATION] = str(failures)
            body["spec"].setdefault("hostname", f"{name}-{index}")
            source = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{INDEX_KEY}']"}}
            for container in [*body["spec"].get("initContainers", []), *body["spec"].get("containers", [])]:
                env = container.get("env") or []
                if all(variable.get("name") != "JOB_COMPLETION_INDEX" for variable in env):
                    container["env"] = [*env, {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}]
        return body

    async def _stop(self, job: Job, pods: list[Pod]) -> None:
        """Deletes pods that the job itself does not want: untracked first, so that they do not count as failed."""
        await self._untrack(pods)
        await self._pods.delete(job, pods)

    async def _untrack(self, pods: list[Pod]) -> None:
        """Lets finished pods go: their fate is written in the job's status, or there is no job."""
        await asyncio.gather(*(self._untrack_one(pod) for pod in pods))

    async def _untrack_one(self, pod: Pod) -> None:
        metadata = {"uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER]}
        name, namespace = pod.metadata.name, pod.metadata.namespace
        try:
            written = await self._caches.client.patch(
                PODS, name, namespace, patch={"metadata": metadata}, kind="strategic"
            )
        except (kube.NotFound, kube.Conflict):
            return  # gone; a Conflict says that a namesake took its place
        await self._caches.pods.reached(written["metadata"]["resourceVersion"])

    async def _write(self, job: Job, tally: Tally, conditions: dict[str, Condition], started: str | None) -> None:
        job = self._jobs.objects.get(job.key, job)
        complete = conditions.get("Complete")
        uncounted = {"succeeded": tally.succeeded_uids, "failed": tally.failed_uids}
        status: dict[str, Any] = {
            "active": len(tally.active),
            "ready": sum(pod_state.is_ready(pod) for pod in tally.active),
            "terminating": tally.terminating,
            "succeeded": tally.counted_succeeded,
            "failed": tally.counted_failed,
            "startTime": started,
            "completionTime": complete.last_transition_time if complete else None,
            "completedIndexes": render_indexes(tally.completed) or None,
            "failedIndexes": render_indexes(tally.failed_indexes) or None,
            "uncountedTerminatedPods": {field: uids or None for field, uids in uncounted.items()},
            "conditions": wire_conditions(conditions.values()) or None,
        }
        known = msgspec.to_builtins(job.status)
        known["uncountedTerminatedPods"] = {
            field: known.get("uncountedTerminatedPods", {}).get(field) for field in uncounted
        }
        known |= {
            field: known.get(field) for field in ("startTime", "completionTime", "completedIndexes", "failedIndexes")
        }
        known["conditions"] = wire_conditions(job.status.conditions) or None
        await patch_status(self._caches, JOBS, job, status, known)

    async def _expire(self, job: Job, finished: Condition) -> float | None:
        """Deletes a finished job with its pods when its time to live is over."""
        ttl = job.spec.ttl_seconds_after_finished
        if ttl is None or job.metadata.deletion_timestamp is not None:
            return None
        left = clock.parse(finished.last_transition_time) + ttl - self._caches.now()
        if left > 0:
            return left
        try:
            await self._caches.client.delete(
                JOBS, job.metadata.name, job.metadata.namespace, uid=job.metadata.uid, propagation="Foreground"
            )
        except kube.NotFound:
            pass
        return None


def condition(kind: str, reason: str, message: str, now: float, status: str = "True") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=clock.render(now))


def suspend(job: Job, conditions: dict[str, Condition], now: float) -> None:
    """Keeps the Suspended condition in step with the spec; a job that never was suspended has none."""
    known = conditions.get("Suspended")
    if job.spec.suspend and (known is None or known.status != "True"):
        conditions["Suspended"] = condition("Suspended", "JobSuspended", "Job suspended", now)
    elif not job.spec.suspend and known is not None and known.status == "True":
        conditions["Suspended"] = condition("Suspended", "JobResumed", "Job resumed", now, "False")


def finished_condition(job: Job) -> Condition | None:
    return next((c for c in job.status.conditions if c.type in ("Complete", "Failed") and c.status == "True"), None)


def is_ended(pod: Pod) -> bool:
    """Neither runs nor will."""
    return pod_state.is_finished(pod) or pod.metadata.deletion_timestamp is not None


def finished_at(pod: Pod) -> float:
    """When the last container ended, else when the pod stopped being ready."""
    ends = [
        clock.parse(s.state.terminated.get("finishedAt")) for s in pod.status.container_statuses if s.state.terminated
    ]
    times = ends or [clock.parse(c.last_transition_time) for c in pod.status.conditions if c.type == "Ready"]
    return max(times, default=clock.parse(pod.metadata.deletion_timestamp))
