"""What a field is and who owns it: field sets, server-side apply, patches, diffs. Pure.

The embedded API server and drift detection use this one room, so both mean the same by "who owns this field". The
parts: `paths` and `sets` are the algebra of fieldsV1, `schema` says how a type merges, `typed` walks values along a
schema, `managed` is server-side apply and ownership, `patch` and `strategic` are the patch types, `diff` is for
reading.
"""

from capstan.fields.diff import ABSENT, Difference, diff, lookup, three_way_merge_patch
from capstan.fields.errors import FieldsError, InvalidApply, InvalidFieldSet, InvalidPatch, PatchFailed
from capstan.fields.managed import APPLY, UPDATE, Conflict, Conflicts, apply, managers, owned, owners, track_update
from capstan.fields.patch import create_merge_patch, json_patch, merge_patch
from capstan.fields.paths import Path, readable, render
from capstan.fields.schema import Schema
from capstan.fields.sets import FieldSet
from capstan.fields.strategic import strategic_merge_patch
from capstan.fields.typed import Comparison, compare, field_set

__all__ = [
    "ABSENT",
    "APPLY",
    "UPDATE",
    "Comparison",
    "Conflict",
    "Conflicts",
    "Difference",
    "FieldSet",
    "FieldsError",
    "InvalidApply",
    "InvalidFieldSet",
    "InvalidPatch",
    "PatchFailed",
    "Path",
    "Schema",
    "apply",
    "compare",
    "create_merge_patch",
    "diff",
    "field_set",
    "json_patch",
    "lookup",
    "managers",
    "merge_patch",
    "owned",
    "owners",
    "readable",
    "render",
    "strategic_merge_patch",
    "three_way_merge_patch",
    "track_update",
]
