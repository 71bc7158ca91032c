"""PURE. Which pods form a gang: walk from a pod to the workload that made it, and say what must start together.

One module per family of kinds (`core`, `apps`, `batch`); `podgroup.group` picks the family and writes the PodGroup.
"""

from capstan.grouping.gang import Gang, InvalidWorkload, Workload
from capstan.grouping.podgroup import Grouping, group, is_grouped

__all__ = ["Gang", "Grouping", "InvalidWorkload", "Workload", "group", "is_grouped"]
