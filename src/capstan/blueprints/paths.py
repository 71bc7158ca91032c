"""Paths into layers: `addons.queues.values.queues.team-a`, with brackets around names that hold dots."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]

_SEGMENT = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")


class _Missing:
    """What is at a path that does not exist; null is a value."""

    def __repr__(self) -> str:
        return "<missing>"


MISSING: Any = _Missing()


def parse(text: str) -> Path | None:
    """None when the text is not a path."""
    path: list[str] = []
    position = 0
    while position < len(text):
        found = _SEGMENT.match(text, position)
        if found is None:
            return None
        path.append(found[1] or found[2])
        position = found.end()
    return tuple(path) or None


def render(path: Path) -> str:
    text = "".join(f"[{part}]" if "." in part or "/" in part else f".{part}" for part in path)
    return text.removeprefix(".")


def get(tree: Any, path: Path) -> Any:
    for part in path:
        if not isinstance(tree, Mapping) or part not in tree:
            return MISSING
        tree = tree[part]
    return tree


def put(tree: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of the tree with the value at the path; maps on the way are made."""
    head, rest = path[0], path[1:]
    if rest:
        below = tree.get(head)
        value = put(below if isinstance(below, Mapping) else {}, rest, value)
    return {**tree, head: value}


def leaves(tree: Any, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Everything that is not a map with content."""
    if isinstance(tree, Mapping) and tree:
        for name, value in tree.items():
            yield from leaves(value, (*prefix, name))
    else:
        yield prefix, tree
