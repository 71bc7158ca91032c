"""PURE. Health events of GPUs become device taints and health reports, and go away when the GPU has recovered.

Taints are NVIDIA's: `gpu.nvidia.com/xid=<n>` and `gpu.nvidia.com/gpu-lost` with effect NoSchedule. XIDs that an
application causes by itself say nothing about the hardware: their effect is `None`, which only informs.
"""

from __future__ import annotations

from typing import Any

import msgspec

from capstan.node.inventory import Offer

APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
Body = dict[str, Any]


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a GPU, or only with the memory slices [start, stop) of it."""

    kind: str
    """`xid` or `lost`."""
    xid: int = 0
    start: int = 0
    stop: int = 8

    @property
    def serious(self) -> bool:
        return self.kind == "lost" or self.xid not in APPLICATION_XIDS

    @property
    def message(self) -> str:
        return "the GPU has fallen off the bus" if self.kind == "lost" else f"XID {self.xid}"

    @property
    def taint(self) -> Body:
        effect = "NoSchedule" if self.serious else "None"
        if self.kind == "lost":
            return {"key": "gpu.nvidia.com/gpu-lost", "effect": effect}
        return {"key": "gpu.nvidia.com/xid", "value": str(self.xid), "effect": effect}


class Health:
    """The open problems of one node's GPUs, by UUID."""

    def __init__(self) -> None:
        self._problems: dict[str, set[Problem]] = {}

    def add(self, gpu: str, problem: Problem) -> bool:
        """Whether that is news."""
        problems = self._problems.setdefault(gpu, set())
        if problem in problems:
            return False
        problems.add(problem)
        return True

    def clear(self, gpu: str) -> bool:
        return self._problems.pop(gpu, None) is not None

    @property
    def sick(self) -> list[str]:
        return sorted(self._problems)

    def _of(self, offer: Offer) -> list[Problem]:
        slices = offer.slices
        found = self._problems.get(offer.gpu.uuid, ())
        touching = (p for p in found if p.start < slices.stop and slices.start < p.stop)
        return sorted(touching, key=lambda p: (p.kind, p.xid, p.start))

    def taints(self, offer: Offer) -> list[Body]:
        """One taint per key, value and effect, as the API asks for."""
        unique = {tuple(sorted(p.taint.items())): p.taint for p in self._of(offer)}
        return list(unique.values())

    def status(self, offer: Offer) -> tuple[str, str]:
        """(`Healthy` or `Unhealthy`, message)."""
        problems = self._of(offer)
        message = "; ".join(dict.fromkeys(problem.message for problem in problems))
        return ("Unhealthy" if any(p.serious for p in problems) else "Healthy", message)
