"""PURE. Which pods form a gang: walk from a pod to the workload that made it, and say what must start together.

One module per family of kinds (`core`, `apps`, `batch`, `kubeflow`, `jobset`, `ray` and so on); `podgroup.group` picks
the family and writes the PodGroup. `reading` takes what users and other operators wrote, without trusting it.
"""

from capstan.grouping.gang import Gang, Related, Settings, Workload
from capstan.grouping.podgroup import (
    OPTIONAL_FIELDS,
    SKIP_ANNOTATION,
    TOP_OWNER_ANNOTATION,
    Grouping,
    group,
    own_group,
    related,
)
from capstan.grouping.reading import InvalidWorkload

__all__ = [
    "OPTIONAL_FIELDS",
    "SKIP_ANNOTATION",
    "TOP_OWNER_ANNOTATION",
    "Gang",
    "Grouping",
    "InvalidWorkload",
    "Related",
    "Settings",
    "Workload",
    "group",
    "own_group",
    "related",
]
