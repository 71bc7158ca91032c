"""Field sets: which fields of an object, as an algebra over the fieldsV1 tree itself.

A tree maps steps (`paths`) to subtrees. A node is a member of the set when it is empty or holds the step `.`; a node
that only has children says nothing about itself. The empty tree at the root is the empty set. Trees are never changed
in place, so results share structure with their arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from capstan.fields.errors import InvalidFieldSet
from capstan.fields.paths import Path, normalized, render

Tree: TypeAlias = dict[str, Any]
"""A fieldsV1 document: step -> Tree. mypy has no recursive alias that also accepts decoded JSON, hence `Any`."""

SELF = "."


class FieldSet:
    """An immutable set of field paths. Operators: `|` union, `&` intersection, `-` difference, `in` membership."""

    __slots__ = ("tree",)

    def __init__(self, tree: Tree | None = None) -> None:
        """`tree` must be canonical: made by this room, or passed through `from_v1`."""
        self.tree: Tree = {} if tree is None else tree

    @classmethod
    def of(cls, paths: Iterable[Path]) -> FieldSet:
        tree: Tree = {}
        for path in paths:
            _insert(tree, path)
        return cls(tree)

    @classmethod
    def from_v1(cls, document: Any) -> FieldSet:
        """Read a fieldsV1 document from outside. Raises InvalidFieldSet."""
        return cls(_canonical(document))

    def to_v1(self) -> Tree:
        return self.tree

    def __or__(self, other: FieldSet) -> FieldSet:
        if not self.tree or not other.tree:
            return other if other.tree else self
        return FieldSet(_union(self.tree, other.tree))

    def __sub__(self, other: FieldSet) -> FieldSet:
        return FieldSet(_difference(self.tree, other.tree) or {}) if other.tree else self

    def __and__(self, other: FieldSet) -> FieldSet:
        return FieldSet(_intersection(self.tree, other.tree) or {}) if self.tree and other.tree else FieldSet()

    def without_subtrees(self, other: FieldSet) -> FieldSet:
        """Remove every member of `other` together with everything below it."""
        return FieldSet(_prune(self.tree, other.tree) or {}) if other.tree else self

    def __contains__(self, path: Path) -> bool:
        node = self.tree
        for step in path:
            if step not in node:
                return False
            node = node[step]
        return bool(path) and _is_member(node)

    def __iter__(self) -> Iterator[Path]:
        return _paths(self.tree, ())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return bool(self.tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FieldSet) and self.tree == other.tree

    def __hash__(self) -> int:
        return hash(tuple(sorted(self)))

    def leaves(self) -> Iterator[Path]:
        """The members without members below them."""
        return (path for path in self if not any(step != SELF for step in self.below(path)))

    def below(self, path: Path) -> Tree:
        """The subtree at a path; empty when there is none (or the path is a leaf)."""
        node = self.tree
        for step in path:
            node = node.get(step, {})
        return node

    def __repr__(self) -> str:
        return f"FieldSet({', '.join(sorted(render(path) for path in self))})"


def _is_member(node: Tree) -> bool:
    return not node or SELF in node


def _insert(tree: Tree, path: Path) -> None:
    node = tree
    for depth, step in enumerate(path):
        last = depth == len(path) - 1
        child = node.get(step)
        if child is None:
            child = node[step] = {}
            if not last:
                node = child
                continue
        elif last:
            if child:
                child[SELF] = {}
        elif not child:
            child[SELF] = {}
        node = child


def _canonical(document: Any) -> Tree:
    if not isinstance(document, Mapping):
        raise InvalidFieldSet(f"fieldsV1 must be an object, not {document!r}")
    tree: Tree = {}
    for step, below in document.items():
        tree[step if step == SELF else normalized(step)] = _canonical(below)
    # A node that holds only `.` is a plain leaf.
    return {} if tree.keys() == {SELF} else tree


def _paths(tree: Tree, prefix: Path) -> Iterator[Path]:
    for step, below in tree.items():
        if step == SELF:
            continue
        path = (*prefix, step)
        if _is_member(below):
            yield path
        yield from _paths(below, path)


def _union(left: Tree, right: Tree) -> Tree:
    """Union of two nodes that both exist; an empty one is a member without children."""
    if not left or not right:
        other = left or right
        return {SELF: {}, **other} if other and SELF not in other else other
    result = dict(left)
    for step, below in right.items():
        mine = result.get(step)
        result[step] = below if mine is None else _union(mine, below)
    return result


def _difference(left: Tree, right: Tree) -> Tree | None:
    """None when nothing is left of the node."""
    if not _is_member(right) and left.keys().isdisjoint(right):
        return left
    result: Tree = {}
    for step, below in left.items():
        if step == SELF:
            continue
        other = right.get(step)
        rest = below if other is None else _difference(below, other)
        if rest is not None:
            result[step] = rest
    if _is_member(left) and not _is_member(right):
        return {SELF: {}, **result} if result else {}
    return result or None


def _intersection(left: Tree, right: Tree) -> Tree | None:
    result: Tree = {}
    for step, below in left.items():
        if step != SELF and (other := right.get(step)) is not None:
            common = _intersection(below, other)
            if common is not None:
                result[step] = common
    if _is_member(left) and _is_member(right):
        return {SELF: {}, **result} if result else {}
    return result or None


def _prune(tree: Tree, removed: Tree) -> Tree | None:
    """None when nothing is left of the node. A member of `removed` takes its whole subtree along."""
    if _is_member(removed):
        return None
    if not tree:
        return tree
    result: Tree = {}
    for step, below in tree.items():
        other = removed.get(step)
        rest = below if other is None else _prune(below, other)
        if rest is not None:
            result[step] = rest
    return {} if result.keys() == {SELF} else result or None
