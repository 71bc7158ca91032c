"""The built-in types: one schema each from `capstan.api.openapi`, and the rules of its kind from the table below."""

from __future__ import annotations

import copy
from functools import cache, cached_property

from capstan.api import openapi
from capstan.api.base import StatusCause
from capstan.api.feature_gates import FeatureGates, GatedFields
from capstan.api.openapi import BuiltinResource
from capstan.local import tables, validation
from capstan.local.structural import Structural
from capstan.local.tables import Printer
from capstan.local.tables_builtin import PRINTERS
from capstan.local.types_base import Object, ResourceType, SelectableField, Undecodable
from capstan.local.types_conversion import CONVERSIONS, storage_version
from capstan.local.types_rules import RULES, Rules


def _selectable(field: str) -> SelectableField:
    """`label=path?text` of `Rules.selectable`."""
    place, _, absent = field.partition("?")
    label, _, path = place.partition("=")
    return SelectableField(label, tuple((path or label).split(".")), absent)


class BuiltinType(ResourceType):
    """A type the server itself knows, as it is under the feature gates."""

    def __init__(self, resource: BuiltinResource, gates: FeatureGates) -> None:
        self.rules: Rules = RULES.get((resource.group, resource.kind), Rules())
        definitions = openapi.definitions()
        super().__init__(
            group=resource.group,
            version=resource.version,
            plural=resource.plural,
            kind=resource.kind,
            namespaced=resource.namespaced,
            schema=definitions[resource.schema],
            schema_name=resource.schema,
            definitions=definitions,
            singular=resource.singular,
            short_names=resource.short_names,
            categories=resource.categories,
            subresources=resource.subresources,
            verbs=resource.verbs,
            selectable=tuple(_selectable(field) for field in self.rules.selectable),
            storage=resource.storage,
            storage_version=storage_version(_api_version(resource), resource.kind),
        )
        self._convert = CONVERSIONS.get((self.api_version, self.kind))
        self.counts_generation = resource.generation
        self.has_status = "status" in resource.subresources
        self._gates = gates
        self._gated = GatedFields(self.schema, definitions).without(gates)

    @property
    def printer(self) -> Printer:
        return PRINTERS.get((self.group, self.kind), tables.PLAIN)

    def _decode(self, obj: Object, old: Object | None) -> None:
        """Prune, default, and drop what belongs to features that are off and `old` does not use.

        The strict schema accepts nearly every object; the rest is looked at field by field.
        """
        structural = self.structural
        if not structural.valid(obj):
            structural.drop_nulls(obj)
            if wrong := structural.type_errors(obj):
                path, expected, found = wrong[0]
                raise Undecodable(
                    f'{self.kind} in version "{self.version}" cannot be handled as a {self.kind}: json: cannot '
                    f"unmarshal "
                    f"{found} into Go struct field {self.kind}.{path} of type {expected}"
                )
            structural.prune(obj)
        structural.default(obj)
        for default in (self.rules.default, self.rules.default_status):
            if default is not None:
                default(obj)
        self._gated.drop(obj, old)

    def prepare_create(self, obj: Object) -> Object:
        self._decode(obj, None)
        rules = self.rules
        if self.has_status and not rules.creates_with_status:
            obj["status"] = dict(rules.initial_status)
        if self.counts_generation:
            obj["metadata"]["generation"] = 1
        if rules.create is not None:
            rules.create(obj)
        return obj

    def prepare_update(self, new: Object, old: Object) -> Object:
        self._decode(new, old)
        if self.has_status:
            _take(new, old, "status")
        if self.rules.update is not None:
            self.rules.update(new, old)
        if self.counts_generation:
            changed = any(new.get(key) != old.get(key) for key in {*new, *old} - _NOT_DESIRED)
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + changed
        return new

    def prepare_status_update(self, new: Object, old: Object) -> Object:
        if self._differs_in_status_only(new, old):
            kept = new
            self._status.default(kept["status"])
            if self.rules.default_status is not None:
                self.rules.default_status(kept)
            self._gated.drop(kept, old)
        else:
            self._decode(new, old)
            meta = dict(old["metadata"])
            for key in ("managedFields", "resourceVersion", *self.rules.status_metadata):
                _take(meta, new["metadata"], key)
            kept = {key: value for key, value in old.items() if key != "status"}
            kept["metadata"] = meta
            _take(kept, new, "status")
        if self.rules.status_update is not None:
            self.rules.status_update(kept, old)
        return kept

    @cached_property
    def _status(self) -> Structural:
        return Structural(self.schema["properties"]["status"], self.definitions)

    def _differs_in_status_only(self, new: Object, old: Object) -> bool:
        """Whether `new` is what is stored but for a well-formed status. Then nothing else needs a second look: most
        writes of a status are such, and a status is small beside its object."""
        return (
            new.keys() | _STATUS == old.keys() | _STATUS
            and all(value == old[key] for key, value in new.items() if key != "status")
            and self._status.valid(new.get("status"))
        )

    def validate(self, new: Object, old: Object | None = None) -> list[StatusCause]:
        rules = self.rules
        causes = validation.metadata(new, namespaced=self.namespaced, name_rule=rules.name_rule)
        if old is not None:
            causes += validation.metadata_update(new, old)
        if not self.structural.valid(new):
            causes += self.structural.errors(new)
            if causes:
                return causes  # the rules of the kind rely on a well-formed object
        if rules.validate is not None:
            causes += rules.validate(self._stored_shape(new), None if old is None else self._stored_shape(old))
        if rules.validate_gated is not None:
            before = None if old is None else self._stored_shape(old)
            causes += rules.validate_gated(self._stored_shape(new), before, self._gates)
        return causes

    def validate_status(self, new: Object, old: Object) -> list[StatusCause]:
        causes = validation.metadata_update(new, old)
        # Field tracking has its own checks of the managed fields that it takes.
        as_stored = self._differs_in_status_only(_without_tracking(new), _without_tracking(old))
        if not as_stored and not self.structural.valid(new):
            causes += self.structural.errors(new)
            if causes:
                return causes
        if self.rules.validate_status is not None:
            causes += self.rules.validate_status(self._stored_shape(new), self._stored_shape(old))
        return causes

    def _stored_shape(self, obj: Object) -> Object:
        """The object as the rules of its kind read it; itself unless its version has another shape."""
        return obj if self._convert is None else self._convert[0](copy.deepcopy(obj))

    def to_storage(self, obj: Object) -> Object:
        return super().to_storage(obj) if self._convert is None else self._convert[0](obj)

    def from_storage(self, obj: Object) -> Object:
        return super().from_storage(obj) if self._convert is None else self._convert[1](obj)


def _api_version(resource: BuiltinResource) -> str:
    return f"{resource.group}/{resource.version}" if resource.group else resource.version


_NOT_DESIRED = {"apiVersion", "kind", "metadata", "status"}
_STATUS = frozenset(("status",))


def _without_tracking(obj: Object) -> Object:
    metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    return {**obj, "metadata": metadata}


def _take(target: Object, source: Object, key: str) -> None:
    """Make a field what it is in `source`, absent included."""
    if (value := source.get(key)) is not None:
        target[key] = value
    else:
        target.pop(key, None)


@cache
def all_types(gates: FeatureGates) -> tuple[ResourceType, ...]:
    """The types that are served under the gates."""
    resources = openapi.builtin_resources()
    return tuple(BuiltinType(resource, gates) for resource in resources if not resource.gate or resource.gate in gates)
