"""The errors of the node room: one small tree, each message names the object and the `hint` says what to do next."""

from __future__ import annotations


class NodeError(Exception):
    """Base of all errors of a node's driver. `hint` is a sentence for the person who reads the pod's events."""

    hint: str = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} ({self.hint})" if self.hint else text


class UnknownModel(NodeError):
    """A token of a fleet description that names no node model."""


class ClaimRefused(NodeError):
    """A claim that this node will not prepare as it stands: the API object is missing, changed or not for us."""


class DeviceBusy(NodeError):
    """The claim's devices overlap with what another claim still holds on this node."""

    hint = "the kubelet retries; the device is free once that claim is unprepared"


class AlreadyRunning(NodeError):
    """Another process drives this node's devices; two would not see each other's claims."""


class LedgerCorrupt(NodeError):
    """The journal of prepared claims could not be read."""


class NvmlError(NodeError):
    """A failed NVML call; `code` is the NVML name without its prefix, such as INSUFFICIENT_RESOURCES."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(f"{message}: {code}", hint)
        self.code = code


class NvmlTimeout(NvmlError):
    """NVML did not answer before the deadline; the helper process was replaced."""

    def __init__(self, call: str, seconds: float) -> None:
        super().__init__("TIMEOUT", f"NVML call {call} did not return within {seconds:g} s")
