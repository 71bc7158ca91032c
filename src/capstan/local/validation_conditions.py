"""Rules of `metav1.Condition`, for every status that lists conditions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from capstan.local.structural_errors import duplicate, invalid, required, unsupported
from capstan.local.validation import Causes, Object, key_error

_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_REASON_RULE = (
    "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric "
    "characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or "
    "'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is "
    "'[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')"
)
_STATUSES = ["False", "True", "Unknown"]


def conditions(given: Sequence[Object], path: str, causes: Causes) -> None:
    """Each type once; type, status, reason and time of the last transition are there and make sense."""
    seen: set[str] = set()
    for index, condition in enumerate(given):
        below, kind = f"{path}[{index}]", condition.get("type", "")
        if wrong := key_error(kind):
            causes.append(invalid(f"{below}.type", kind, wrong))
        if kind in seen:
            causes.append(duplicate(f"{below}.type", kind))
        seen.add(kind)
        if condition.get("status") not in _STATUSES:
            causes.append(unsupported(f"{below}.status", condition.get("status", ""), _STATUSES))
        if condition.get("observedGeneration", 0) < 0:
            detail = "must be greater than or equal to zero"
            causes.append(invalid(f"{below}.observedGeneration", condition["observedGeneration"], detail))
        if not condition.get("lastTransitionTime"):
            causes.append(required(f"{below}.lastTransitionTime", "must be set"))
        reason = condition.get("reason", "")
        if not reason:
            causes.append(required(f"{below}.reason", "must be set"))
        elif not _REASON.fullmatch(reason):
            causes.append(invalid(f"{below}.reason", reason, _REASON_RULE))
