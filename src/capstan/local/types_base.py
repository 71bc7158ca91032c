"""What a handler asks about a resource before it stores an object: the interface of every served type.

A write goes `unknown_fields` (warnings) → `prepare_create` / `prepare_update` / `prepare_status_update` (decode, prune,
default, take over what the caller may not change) → admission → `validate` → store. All of it works in place on plain
JSON objects that belong to the request. `metadata` fields of the server (uid, creationTimestamp, resourceVersion,
generateName, managedFields, deletionTimestamp) are set by the server, generation here.

Two kinds exist: `local.types_builtin.BuiltinType` and `local.crds.CustomType`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from capstan.api import openapi
from capstan.api.base import StatusCause
from capstan.api.openapi import JsonSchema
from capstan.local.structural import Structural

if TYPE_CHECKING:
    from capstan.fields.schema import Schema
    from capstan.local.tables import Printer

Object = dict[str, Any]


class Undecodable(ValueError):
    """An object whose JSON has the wrong shape for its type: answered with 400 BadRequest, not 422."""


class Column(msgspec.Struct, frozen=True):
    """A printer column. `priority` 0 is always shown, 1 only with `-o wide`; `type` as in OpenAPI (string, integer,
    date...).
    """

    name: str
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0


class SelectableField(msgspec.Struct, frozen=True):
    """A field label that lists can select on, and where its value stands in the object."""

    label: str
    path: tuple[str, ...]
    absent: str = ""
    """The text for an object that does not have the field."""


_NAME = SelectableField("metadata.name", ("metadata", "name"))
_NAMESPACE = SelectableField("metadata.namespace", ("metadata", "namespace"))


class ResourceType(ABC):
    """One resource of one group version. Instances are compared by identity and live as long as they are served."""

    strategic_merge = True
    """Whether PATCH takes strategic merge patches; custom resources do not."""

    def __init__(
        self,
        *,
        group: str,
        version: str,
        plural: str,
        kind: str,
        namespaced: bool,
        schema: JsonSchema,
        schema_name: str,
        definitions: Mapping[str, JsonSchema],
        singular: str = "",
        list_kind: str = "",
        short_names: tuple[str, ...] = (),
        categories: tuple[str, ...] = (),
        subresources: tuple[str, ...] = (),
        verbs: tuple[str, ...] = openapi.ALL_VERBS,
        selectable: tuple[SelectableField, ...] = (),
        storage: str = "",
        storage_version: str = "",
    ) -> None:
        self.group = group
        self.version = version
        self.plural = plural
        self.singular = singular or kind.lower()
        self.kind = kind
        self.list_kind = list_kind or f"{kind}List"
        self.short_names = short_names
        self.categories = categories
        self.namespaced = namespaced
        self.subresources = subresources
        self.verbs = verbs
        self.schema = schema
        self.schema_name = schema_name
        self.definitions = definitions
        self.api_version = f"{group}/{version}" if group else version
        self.storage = storage or f"{group}/{plural}"
        """`group/plural` under which objects are stored; several types (versions, Events) may share it."""
        self.storage_version = storage_version or self.api_version
        """The apiVersion objects are stored with."""
        self.selectable = (_NAME, _NAMESPACE, *selectable) if namespaced else (_NAME, *selectable)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.api_version}/{self.plural})"

    @property
    def group_resource(self) -> str:
        """`plural.group` as error messages name it; only `plural` in the core group."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @cached_property
    def structural(self) -> Structural:
        return Structural(self.schema, self.definitions)

    @cached_property
    def merge_schema(self) -> Schema:
        """What patches and server-side apply need to know: list types, map keys, merge keys."""
        from capstan.fields.schema import Schema

        return Schema.from_openapi(self.schema, self.definitions)

    @property
    @abstractmethod
    def printer(self) -> Printer:
        """The columns of a Table answer and the function that fills them."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.printer.columns

    def unknown_fields(self, obj: Object) -> list[str]:
        """Paths of fields the type does not have, as kubectl shows them: `spec.containers[0].imagee`."""
        structural = self.structural
        return [] if structural.valid(obj) else structural.unknown(obj)

    @abstractmethod
    def prepare_create(self, obj: Object) -> Object:
        """Prune, default and reset what a creator may not set. Raises Undecodable."""

    @abstractmethod
    def prepare_update(self, new: Object, old: Object) -> Object:
        """Prune, default, take the status and other protected fields from `old`, count the generation; as above."""

    @abstractmethod
    def prepare_status_update(self, new: Object, old: Object) -> Object:
        """Keep only the status of `new` (and its managedFields and resourceVersion). Raises Undecodable."""

    @abstractmethod
    def validate(self, new: Object, old: Object | None = None) -> list[StatusCause]:
        """What is wrong with a prepared object, upstream's causes; empty when it may be stored. `old` on updates."""

    @abstractmethod
    def validate_status(self, new: Object, old: Object) -> list[StatusCause]:
        """What is wrong with an update of the status subresource."""

    def to_storage(self, obj: Object) -> Object:
        """The object as it is stored: itself, with the storage version."""
        if obj.get("apiVersion") != self.storage_version:
            obj["apiVersion"] = self.storage_version
        return obj

    def from_storage(self, obj: Object) -> Object:
        """A stored object as this version shows it. Changes `obj` when the versions differ."""
        if obj.get("apiVersion") != self.api_version:
            obj["apiVersion"] = self.api_version
        return obj

    def selectable_fields(self, obj: Object) -> dict[str, str]:
        """The values field selectors compare, by label; absent values are empty."""
        values: dict[str, str] = {}
        for field in self.selectable:
            value: Any = obj
            for step in field.path:
                value = value.get(step) if isinstance(value, dict) else None
                if value is None:
                    break
            if value is None:
                values[field.label] = field.absent
            elif isinstance(value, str):
                values[field.label] = value
            else:
                values[field.label] = str(value).lower() if isinstance(value, bool) else str(value)
        return values
