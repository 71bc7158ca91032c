"""The series of queues, read from the World and from the Queue objects whenever somebody asks.

They are those of KAI's queue-controller and the fair shares and usage of its scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from capstan import scheduling
from capstan.api.scheduling import Queue, QueueResource, QueueResources
from capstan.scheduling.amounts import GPU, RESOURCES
from capstan.scheduling.installation import QUEUE_METRIC_LABELS

_CPU, _MEMORY, _GPU = range(3)
_CORES, _BYTES, _GIGABYTES, _DEVICES = 1e-3, 1.0, 1e-9, 1 / GPU


class QueueMetrics(Collector):
    """`queues` gives the Queue objects as they are at that moment."""

    def __init__(
        self, world: scheduling.World, queues: Callable[[], Iterable[Queue]], installation: scheduling.Installation
    ) -> None:
        self._world, self._queues = world, queues
        self._prefix = f"{installation.metrics_namespace}_"
        self._extra = sorted(installation.metric_labels)
        """(label of a Queue, label of its metrics)"""
        self._defaults = dict(installation.metric_defaults)

    def collect(self) -> Iterator[Metric]:
        objects = {queue.metadata.name: queue for queue in self._queues()}
        yield from self._of_objects(objects)
        yield from self._of_shares(objects)
        yield from self._own()

    def _of_objects(self, objects: Mapping[str, Queue]) -> Iterator[Metric]:
        names = [*QUEUE_METRIC_LABELS, *(metric for _, metric in self._extra)]
        texts = {
            "info": "1 for each queue.",
            "deserved_gpus": "GPU quota; -1: unlimited.",
            "quota_cpu_cores": "CPU quota; -1: unlimited.",
            "quota_memory_bytes": "Memory quota; -1: unlimited.",
            "allocated_gpus": "GPUs allocated, shares of them included.",
            "allocated_cpu_cores": "CPU allocated.",
            "allocated_memory_bytes": "Memory allocated.",
        }
        families = {
            name: GaugeMetricFamily(f"{self._prefix}queue_{name}", text, labels=names) for name, text in texts.items()
        }
        for queue in objects.values():
            labels = [*self._identity(queue), *self._labels_of(queue)]
            spec, counted = queue.spec.resources or QueueResources(), self._world.queues.get(queue.metadata.name)
            held = counted.allocated if counted is not None else (0, 0, 0)
            values = {
                "info": 1.0,
                "deserved_gpus": _quota(spec.gpu, 1.0),
                "quota_cpu_cores": _quota(spec.cpu, 1e-3),
                "quota_memory_bytes": _quota(spec.memory, 1e6),
                "allocated_gpus": held[_GPU] * _DEVICES,
                "allocated_cpu_cores": held[_CPU] * _CORES,
                "allocated_memory_bytes": held[_MEMORY] * _BYTES,
            }
            for name, value in values.items():
                families[name].add_metric(labels, value)
        yield from families.values()

    @staticmethod
    def _identity(queue: Queue) -> list[str]:
        return [queue.metadata.name, queue.metadata.name, queue.spec.display_name]

    def _labels_of(self, queue: Queue) -> list[str]:
        return [queue.metadata.labels.get(label, self._defaults.get(label, "")) for label, _ in self._extra]

    def _of_shares(self, objects: Mapping[str, Queue]) -> Iterator[Metric]:
        counted, usage = self._world.queues.values(), self._world.usage
        for name, text, i, scale in (
            ("fair_share_cpu_cores", "Fair share of CPU in the last cycle.", _CPU, _CORES),
            ("fair_share_memory_gb", "Fair share of memory in the last cycle, in 10^9 bytes.", _MEMORY, _GIGABYTES),
            ("fair_share_gpu", "Fair share of GPUs in the last cycle.", _GPU, _DEVICES),
        ):
            values = {queue.name: queue.fair[i] * scale for queue in counted}
            yield self._by_queue(objects, name, text, values)
        for resource in RESOURCES:
            text = f"Part of the cluster's {resource} used over the accounting window, 0 to 1."
            values = {queue.name: usage.get(queue.name, {}).get(resource, 0.0) for queue in counted}
            yield self._by_queue(objects, f"{resource}_usage", text, values)

    def _by_queue(self, objects: Mapping[str, Queue], name: str, text: str, values: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(f"{self._prefix}queue_{name}", text, labels=QUEUE_METRIC_LABELS)
        for queue, value in values.items():
            found = objects.get(queue)
            family.add_metric(self._identity(found) if found else [queue, queue, ""], value)
        return family

    def _own(self) -> Iterator[Metric]:
        for unit, text, i, scale in (
            ("gpus", "GPUs allocated and asked for.", _GPU, _DEVICES),
            ("cpu_cores", "CPU allocated and asked for.", _CPU, _CORES),
            ("memory_bytes", "Memory allocated and asked for.", _MEMORY, _BYTES),
        ):
            family = GaugeMetricFamily(f"capstan_queue_requested_{unit}", text, labels=["queue_name"])
            for queue in self._world.queues.values():
                family.add_metric([queue.name], queue.requested[i] * scale)
            yield family
        family = GaugeMetricFamily(
            "capstan_queue_pending_podgroups", "Gangs with pods that wait.", labels=["queue_name"]
        )
        for queue in self._world.queues.values():
            family.add_metric([queue.name], float(len(queue.pending)))
        yield family


def _quota(bound: QueueResource, scale: float) -> float:
    """As KAI's queue-controller reports it: -1 stays unscaled."""
    return bound.quota if bound.quota == -1 else bound.quota * scale
