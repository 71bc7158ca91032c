"""Node pools: which nodes and gangs a shard serves, by a label (KAI's SchedulingShard with its partition label).

Pods belong to the pool of their PodGroup, whatever their own labels say: the group is what users and the grouper
label. Pods of other pools count like those of other schedulers, only on nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

from capstan.api.core import Pod
from capstan.scheduling.policy import Policy

Key = tuple[str, str]


class Membership:
    """Which PodGroups are of this shard, and the pods that are set aside because theirs is not, or not written yet."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._ours: dict[Key, bool] = {}
        """Known PodGroups."""
        self._aside: dict[Key, set[str]] = {}
        """Gang -> uids of its pods; kept so that they are found when it comes over."""

    def place_group(self, key: Key, labels: Mapping[str, str]) -> bool:
        """Note a PodGroup as it is now; whether this shard serves it."""
        self._ours[key] = self._policy.serves(labels)
        return self._ours[key]

    def forget_group(self, key: Key) -> None:
        self._ours.pop(key, None)

    def admits(self, key: Key, pod: Pod) -> bool:
        """Whether a pod takes part here. While its PodGroup is unknown, its own label decides who says so."""
        ours = self._ours.get(key)
        return self._policy.serves(pod.metadata.labels) if ours is None else ours

    def set_aside(self, key: Key, uid: str) -> None:
        self._aside.setdefault(key, set()).add(uid)

    def take_up(self, key: Key, uid: str = "") -> list[str]:
        """The pods of a gang that were set aside, or one of them, which are so no longer."""
        found = self._aside.get(key, set())
        taken = sorted(found & {uid}) if uid else sorted(found)
        found.difference_update(taken)
        if not found:
            self._aside.pop(key, None)
        return taken
