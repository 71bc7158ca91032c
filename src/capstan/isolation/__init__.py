"""How tenants are kept apart: isolation levels, runtime classes for microVMs, handing GPUs to them by VFIO."""

from capstan.isolation.levels import Evidence, Level, Report, report
from capstan.isolation.rules import Violation, violations
from capstan.isolation.runtime_classes import (
    Choice,
    NoRuntimeClass,
    RuntimeClassSpec,
    node_labels,
    runtime_class,
    runtime_classes,
    select_runtime_class,
)

__all__ = [
    "Choice",
    "Evidence",
    "Level",
    "NoRuntimeClass",
    "Report",
    "RuntimeClassSpec",
    "Violation",
    "node_labels",
    "report",
    "runtime_class",
    "runtime_classes",
    "select_runtime_class",
    "violations",
]
