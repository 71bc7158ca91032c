"""PURE. The Kubernetes dialect of the Common Expression Language: parse, check, estimate, compile to Python, evaluate.

`compile(source, environment)` gives a `Program`; `device.compile_selector` is the front for DRA.
"""

from capstan.cel import device, environments
from capstan.cel.environments import Environment
from capstan.cel.errors import CelError, CompileError, CostExceeded, EvaluationError, UnknownValue
from capstan.cel.kubernetes import Semver
from capstan.cel.program import Program, compile
from capstan.cel.values import Duration, Optional, Timestamp, Uint

__all__ = [
    "CelError",
    "CompileError",
    "CostExceeded",
    "Duration",
    "Environment",
    "EvaluationError",
    "Optional",
    "Program",
    "Semver",
    "Timestamp",
    "Uint",
    "UnknownValue",
    "compile",
    "device",
    "environments",
]
