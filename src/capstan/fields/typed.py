"""Walks over a value along its schema: which fields it has, what changed, merging two values, removing fields.

These are the four operations that server-side apply is made of (structured-merge-diff, package `typed`). Values are
decoded JSON; none of the functions changes its arguments, results share unchanged parts with them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from capstan.fields.errors import InvalidApply
from capstan.fields.paths import Path, render
from capstan.fields.schema import Schema
from capstan.fields.sets import SELF, FieldSet, Tree

Value = Any


class Comparison(NamedTuple):
    """What an old and a new value of one type differ in. A field is in at most one of the three."""

    added: FieldSet
    modified: FieldSet
    removed: FieldSet

    @property
    def changed(self) -> FieldSet:
        return self.added | self.modified

    def __bool__(self) -> bool:
        return bool(self.added or self.modified or self.removed)


# Which fields a value has --------------------------------------------------------------------------------------------


def field_set(value: dict[str, Value], schema: Schema) -> FieldSet:
    """The fields that applying `value` claims: leaves, list items and map keys; not structs on the way to them.

    Raises InvalidApply for a keyed list whose items repeat or omit their key.
    """
    return FieldSet(_claimed_map(value, schema, ()))


def _claimed(value: Value, schema: Schema, path: Path) -> Tree:
    """The node of a value without regard to its own membership; empty for leaves."""
    if isinstance(value, dict):
        return {} if schema.atomic else _claimed_map(value, schema, path)
    if isinstance(value, list) and schema.granular_list:
        tree: Tree = {}
        for item in value:
            step = _step(schema, item, path)
            if step in tree:
                raise InvalidApply(f"{render(path)}: duplicate entries for key {render((step,))}")
            below = _claimed(item, schema.item, (*path, step))
            tree[step] = {SELF: {}, **below} if below else below
        return tree
    return {}


def _claimed_map(value: dict[str, Value], schema: Schema, path: Path) -> Tree:
    tree: Tree = {}
    for name, child in value.items():
        step = "f:" + name
        below = _claimed(child, schema.child(name), (*path, step))
        tree[step] = {SELF: {}, **below} if below and not schema.declares(name) else below
    return tree


def with_named_fields(fields: FieldSet, schema: Schema) -> FieldSet:
    """Also count the declared fields on the way to a member as members."""
    return FieldSet(_with_named(fields.tree, schema))


def _with_named(tree: Tree, schema: Schema) -> Tree:
    result: Tree = {}
    for step, below in tree.items():
        if below and step != SELF:
            name = step[2:]
            named = step[0] == "f"
            below = _with_named(below, schema.child(name) if named else schema.item)
            if named and schema.declares(name):
                below[SELF] = {}
        result[step] = below
    return result


# What changed --------------------------------------------------------------------------------------------------------


def added_fields(value: dict[str, Value], schema: Schema) -> FieldSet:
    """The comparison of nothing with `value`: everything is added. This is the whole cost of tracking a create."""
    return FieldSet(_everything_in_map(value, schema))


def _everything_in_map(value: dict[str, Value], schema: Schema) -> Tree:
    tree: Tree = {}
    for name, child in value.items():
        kind = child.__class__
        if (kind is dict or kind is list) and child:
            below = schema.child(name)
            node = _everything(child, below)
            if node and not below.always_present:
                node[SELF] = {}
            tree["f:" + name] = node
        else:
            tree["f:" + name] = {}
    return tree


def _everything(value: Value, schema: Schema) -> Tree:
    if value.__class__ is dict:
        return {} if schema.atomic else _everything_in_map(value, schema)
    if value.__class__ is list and schema.granular_list:
        tree: Tree = {}
        item_schema = schema.item
        for item in value:
            node = _everything(item, item_schema)
            if node:
                node[SELF] = {}
            tree[schema.step(item)] = node
        return tree
    return {}


def compare(old: dict[str, Value], new: dict[str, Value], schema: Schema) -> Comparison:
    """Field by field differences. Equal subtrees are skipped by plain equality."""
    added: Tree = {}
    modified: Tree = {}
    removed: Tree = {}
    _compare_map(old, new, schema, added, modified, removed)
    return Comparison(FieldSet(added), FieldSet(modified), FieldSet(removed))


def _compare_map(
    old: dict[str, Value], new: dict[str, Value], schema: Schema, added: Tree, modified: Tree, removed: Tree
) -> None:
    for name, value in new.items():
        if name in old:
            before = old[name]
            if before is not value and before != value:
                _compare(before, value, schema.child(name), "f:" + name, added, modified, removed)
        else:
            added["f:" + name] = _appeared(value, schema.child(name))
    for name in old.keys() - new.keys():
        removed["f:" + name] = _appeared(old[name], schema.child(name))


def _appeared(value: Value, schema: Schema) -> Tree:
    node = _everything(value, schema)
    if node and not schema.always_present:
        node[SELF] = {}
    return node


def _compare(old: Value, new: Value, schema: Schema, step: str, added: Tree, modified: Tree, removed: Tree) -> None:
    """Compare two unequal values that both exist. A null is an empty map or list beside one that is not empty."""
    more: Tree = {}
    less: Tree = {}
    changed: Tree = {}
    old_map, new_map = isinstance(old, dict), isinstance(new, dict)
    if (old_map or new_map) and not schema.atomic and (old_map or old is None) and (new_map or new is None):
        _compare_map(old or {}, new or {}, schema, more, changed, less)
    elif schema.granular_list and isinstance(old or [], list) and isinstance(new or [], list):
        _compare_list(old or [], new or [], schema, more, changed, less)
    else:
        modified[step] = {}
        # A value that changed its shape takes the fields below it along.
        if less := _everything(old, schema):
            removed[step] = less
        if more := _everything(new, schema):
            added[step] = more
        return
    if not old and not new:
        # Empty against null. Other values that are unequal without a changed field differ in the order of a list below.
        modified[step] = {}
    if more:
        added[step] = more
    if less:
        removed[step] = less
    if changed:
        modified[step] = changed


def _compare_list(
    old: list[Value], new: list[Value], schema: Schema, added: Tree, modified: Tree, removed: Tree
) -> None:
    before = _grouped(old, schema)
    after = _grouped(new, schema)
    for step, values in after.items():
        previous = before.get(step)
        if previous is None:
            node: Tree = {}
            for value in values:
                node.update(_everything(value, schema.item))
            added[step] = {SELF: {}, **node} if node else node
        elif previous != values:
            if len(previous) == len(values) == 1:
                _compare(previous[0], values[0], schema.item, step, added, modified, removed)
            else:
                modified[step] = {}
    for step in before.keys() - after.keys():
        node = {}
        for value in before[step]:
            node.update(_everything(value, schema.item))
        removed[step] = {SELF: {}, **node} if node else node


def _grouped(values: list[Value], schema: Schema) -> dict[str, list[Value]]:
    """Items by step. Updates may store lists with repeated keys (KEP-555); applies may not."""
    groups: dict[str, list[Value]] = {}
    for value in values:
        groups.setdefault(schema.step(value), []).append(value)
    return groups


# Merging and removing ------------------------------------------------------------------------------------------------


def merge(live: dict[str, Value], applied: dict[str, Value], schema: Schema) -> dict[str, Value]:
    """`live` with every field of `applied`. A null empties a leaf and leaves a map or list alone. Raises
    InvalidApply.
    """
    return _merge_map(live, applied, schema, ())


def _merge_map(live: dict[str, Value], applied: dict[str, Value], schema: Schema, path: Path) -> dict[str, Value]:
    result = dict(live)
    for name, value in applied.items():
        if value is None:
            if not isinstance(live.get(name), (dict, list)):
                result.pop(name, None)
            continue
        merged = _merge(live.get(name), value, schema.child(name), (*path, "f:" + name))
        result[name] = merged
    return result


def _merge(live: Value, applied: Value, schema: Schema, path: Path) -> Value:
    if isinstance(applied, dict) and not schema.atomic:
        return _merge_map(live if isinstance(live, dict) else {}, applied, schema, path)
    if isinstance(applied, list) and schema.granular_list:
        return _merge_list(live if isinstance(live, list) else [], applied, schema, path)
    return applied


def _merge_list(live: list[Value], applied: list[Value], schema: Schema, path: Path) -> list[Value]:
    """Items of both lists follow the order of `applied`; items of `live` alone stay behind their predecessor."""
    wanted: dict[str, Value] = {}
    for item in applied:
        step = _step(schema, item, path)
        if step in wanted:
            raise InvalidApply(f"{render(path)}: duplicate entries for key {render((step,))}")
        wanted[step] = item
    current: dict[str, Value] = {}
    leading: list[Value] = []
    following: dict[str, list[Value]] = {}
    anchor = ""
    for item in live:
        step = _step(schema, item, path)
        if step in wanted:
            # Of repeated live items the applied one replaces all; its predecessor is the first.
            current.setdefault(step, item)
            anchor = step
        elif anchor:
            following.setdefault(anchor, []).append(item)
        else:
            leading.append(item)
    result = leading
    for step, item in wanted.items():
        result.append(_merge(current.get(step), item, schema.item, (*path, step)))
        result.extend(following.get(step, ()))
    return result


def remove(value: dict[str, Value], fields: FieldSet, schema: Schema) -> dict[str, Value]:
    """`value` without the members of `fields` (and what is below them). Containers that become empty go too."""
    return _remove_from_map(value, fields.tree, schema)


def _remove_from_map(value: dict[str, Value], tree: Tree, schema: Schema) -> dict[str, Value]:
    result: dict[str, Value] = {}
    for name, child in value.items():
        node = tree.get("f:" + name)
        if node is None:
            result[name] = child
        elif node and SELF not in node:
            rest = _remove(child, node, schema.child(name))
            if rest or not child:
                result[name] = rest
    return result


def _remove(value: Value, tree: Tree, schema: Schema) -> Value:
    if isinstance(value, dict) and not schema.atomic:
        return _remove_from_map(value, tree, schema)
    if not isinstance(value, list) or not schema.granular_list:
        return value
    result = []
    for item in value:
        node = tree.get(schema.step(item))
        if node is None:
            result.append(item)
        elif node and SELF not in node:
            result.append(_remove(item, node, schema.item))
    return result


def _step(schema: Schema, item: Value, path: Path) -> str:
    try:
        return schema.step(item)
    except InvalidApply as error:
        raise InvalidApply(f"{render(path)}: {error}") from None
