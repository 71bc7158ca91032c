"""What KAI's Config means here: it holds for all shards and components."""

from __future__ import annotations

import re
from dataclasses import dataclass

from capstan.api.kai import Config
from capstan.api.scheduling import NODE_POOL_LABEL, QUEUE_LABEL, SCHEDULER_NAME
from capstan.scheduling.texts import Problem, Reader

METRICS_NAMESPACE = "kai"
QUEUE_METRIC_LABELS = ("queue_name", "queue_metadata_name", "queue_display_name")
"""What metrics of queues are labelled with in any case."""
_METRIC_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class Installation:
    """What the Config says for all shards and components."""

    scheduler_name: str = SCHEDULER_NAME
    queue_label: str = QUEUE_LABEL
    node_pool_label: str = NODE_POOL_LABEL
    gpu_sharing: bool = True
    metrics_namespace: str = METRICS_NAMESPACE
    metric_labels: tuple[tuple[str, str], ...] = ()
    """(label of a Queue, label of its metrics)"""
    metric_defaults: tuple[tuple[str, str], ...] = ()
    """(label of a Queue, value in metrics of Queues without it)"""
    problems: tuple[Problem, ...] = ()


def installation(config: Config | None) -> Installation:
    """What a Config says; without one, the defaults."""
    if config is None:
        return Installation()
    read = Reader()
    spec = config.spec
    metrics = spec.queue_controller
    where = "spec.queueController"
    namespace = metrics.metrics_namespace or METRICS_NAMESPACE
    if not _METRIC_NAME.fullmatch(namespace):
        read.refuse(f"{where}.metricsNamespace", f"{namespace!r} cannot begin a metric; {METRICS_NAMESPACE} is used")
        namespace = METRICS_NAMESPACE
    return Installation(
        scheduler_name=spec.global_.scheduler_name or SCHEDULER_NAME,
        queue_label=spec.global_.queue_label_key or QUEUE_LABEL,
        node_pool_label=spec.global_.node_pool_label_key or NODE_POOL_LABEL,
        gpu_sharing=spec.admission.gpu_sharing is not False,
        metrics_namespace=namespace,
        metric_labels=_metric_labels(read, f"{where}.queueLabelToMetricLabel", metrics.queue_label_to_metric_label),
        metric_defaults=read.pairs(
            f"{where}.queueLabelToDefaultMetricValue", metrics.queue_label_to_default_metric_value
        ),
        problems=tuple(read.problems),
    )


def _metric_labels(read: Reader, field: str, text: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for label, name in read.pairs(field, text):
        if not _METRIC_NAME.fullmatch(name) or name.startswith("__"):
            read.refuse(field, f"{name!r} cannot be a label of a metric; {label} is left out")
        elif name in found.values() or name in QUEUE_METRIC_LABELS:
            read.refuse(field, f"{name!r} would be the label twice; {label} is left out")
        else:
            found[label] = name
    return tuple(found.items())
