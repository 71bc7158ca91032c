"""The resources the embedded API server serves: built-in types and those of CustomResourceDefinitions, behind one
interface.
"""

from __future__ import annotations

from collections.abc import Iterable

from capstan.api.feature_gates import FeatureGates
from capstan.local import crds, types_builtin
from capstan.local.types_base import Column, Object, ResourceType, SelectableField, Undecodable

__all__ = ["Column", "Object", "ResourceType", "SelectableField", "Undecodable", "builtin_types", "by_path", "from_crd"]


def builtin_types(gates: FeatureGates = FeatureGates()) -> list[ResourceType]:  # noqa: B008  # immutable
    """The types the server has without any CRD: a fresh list of instances shared between equal gates."""
    return list(types_builtin.all_types(gates))


def from_crd(crd: Object) -> list[ResourceType]:
    """One type per served version of a valid CustomResourceDefinition."""
    return list(crds.types_of(crd))


def by_path(types: Iterable[ResourceType]) -> dict[tuple[str, str, str], ResourceType]:
    """(group, version, plural) → type: what a request path names."""
    return {(item.group, item.version, item.plural): item for item in types}
