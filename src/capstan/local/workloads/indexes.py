"""Completion indexes of indexed jobs, as the status writes them: `0-2,4`."""

from __future__ import annotations

from collections.abc import Collection

from capstan.api.core import Pod

_ANNOTATION = "batch.kubernetes.io/job-completion-index"


def parse_indexes(text: str) -> set[int]:
    """The members of `0-2,4`. Raises ValueError for anything else."""
    found: set[int] = set()
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def render_indexes(indexes: Collection[int]) -> str:
    """Ascending; neighbours as a range, two of them as `a,b`."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(
        str(first) if first == last else f"{first}{',' if last == first + 1 else '-'}{last}" for first, last in runs
    )


def index_of(pod: Pod) -> int | None:
    text = pod.metadata.annotations.get(_ANNOTATION, "")
    return int(text) if text.isdigit() else None
