"""What merging needs to know about a type: which maps and lists are one value, and how list items are told apart.

Built once per type from its OpenAPI v3 schema and resolved lazily, since types refer to themselves (JSONSchemaProps)
and most of a large type is never touched. The rules are those of KEP-555 and structured-merge-diff: maps are granular
unless `x-kubernetes-map-type: atomic`, lists are atomic unless `x-kubernetes-list-type` is `set` or `map`, and what
no schema declares is deduced from the value: granular maps, atomic lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capstan.fields.errors import InvalidApply
from capstan.fields.paths import key_step, value_step

Document = Mapping[str, Any]


class Schema:
    """One node of a type. `fields` and `item` are followed with `child(name)` and `item`, which never fail."""

    __slots__ = (
        "_children",
        "_definitions",
        "_element",
        "_properties",
        "_required",
        "always_present",
        "atomic",
        "granular_list",
        "key_defaults",
        "list_keys",
        "list_type",
        "patch_key",
        "patch_strategies",
    )

    def __init__(self) -> None:
        self.atomic = False
        self.granular_list = False
        self.list_type = "atomic"
        """`atomic`, `set` or `map`."""
        self.list_keys: tuple[str, ...] = ()
        """Sorted, as in the paths of managed fields."""
        self.key_defaults: dict[str, Any] = {}
        self.patch_key = ""
        """The merge key of strategic merge patches; empty for lists that a patch replaces or merges as sets."""
        self.patch_strategies: frozenset[str] = frozenset()
        self.always_present = False
        """The field has no absent state (a Go struct held by value), so it is never itself an added field."""
        self._properties: Document = {}
        self._required: frozenset[str] = frozenset()
        self._definitions: Document = {}
        self._element: Document | Schema | None = None
        self._children: dict[str, Schema] = {}

    @classmethod
    def untyped(cls) -> Schema:
        """The schema of a value of which nothing is declared."""
        return _UNTYPED

    @classmethod
    def from_openapi(cls, root: Document, definitions: Document | None = None) -> Schema:
        """The merge schema of an OpenAPI v3 schema object.

        `definitions` resolves `$ref`: names, or whole `#/components/schemas/<name>` references, to schema objects.
        """
        return cls._build(root, definitions or {})

    @classmethod
    def _build(cls, given: Document, definitions: Document) -> Schema:
        document = _resolve(given, definitions)
        schema = cls()
        schema._definitions = definitions
        schema.atomic = document.get("x-kubernetes-map-type") == "atomic"
        schema.patch_key = document.get("x-kubernetes-patch-merge-key", "")
        strategy = document.get("x-kubernetes-patch-strategy", "")
        schema.patch_strategies = frozenset(strategy.split(",")) if strategy else frozenset()
        schema.list_type = document.get("x-kubernetes-list-type", "")
        schema.list_keys = tuple(sorted(document.get("x-kubernetes-list-map-keys", ())))
        if not schema.list_type:
            # Types older than list types are told by their patch strategy (kube-openapi, schemaconv).
            merged = "merge" in schema.patch_strategies and "items" in document
            schema.list_type = ("map" if schema.patch_key else "set") if merged else "atomic"
            schema.list_keys = (schema.patch_key,) if merged and schema.patch_key else ()
        schema.granular_list = schema.list_type in ("map", "set")
        schema.always_present = document.get("default") == {}
        schema._properties = document.get("properties") or {}
        schema._required = frozenset(document.get("required") or ())
        if "items" in document:
            schema._element = document["items"]
            if schema.list_type == "map":
                items = _resolve(document["items"], definitions).get("properties") or {}
                schema.key_defaults = {
                    key: items[key]["default"] for key in schema.list_keys if "default" in items.get(key, {})
                }
        elif isinstance(document.get("additionalProperties"), Mapping):
            schema._element = document["additionalProperties"]
        return schema

    @property
    def item(self) -> Schema:
        """The schema of list items, or of the values of a map without declared fields."""
        element = self._element
        if isinstance(element, Schema):
            return element
        built = _UNTYPED if element is None else Schema._build(element, self._definitions)
        self._element = built
        return built

    def child(self, name: str) -> Schema:
        """The schema of a field; for an undeclared one that of `additionalProperties`, else untyped."""
        found = self._children.get(name)
        if found is None:
            if name in self._properties:
                found = Schema._build(self._properties[name], self._definitions)
                found.always_present = found.always_present or name in self._required
            elif self._properties or self._element is None:
                found = _UNTYPED
            else:
                return self.item
            self._children[name] = found
        return found

    def declares(self, name: str) -> bool:
        """Whether the field is named by the type; keys of a map and unknown fields are not."""
        return name in self._properties

    def step(self, item: Any) -> str:
        """The path step that identifies an item of this granular list. Raises InvalidApply when a key is missing."""
        if self.list_type == "set":
            return value_step(item)
        if not isinstance(item, dict):
            raise InvalidApply(f"the list item {item!r} must be an object with the keys {', '.join(self.list_keys)}")
        key = {}
        for name in self.list_keys:
            value = item.get(name)
            if value is None:
                if name not in self.key_defaults:
                    # KEP-555: an item may leave out a key as long as it states another one.
                    continue
                value = self.key_defaults[name]
            key[name] = value
        if not key:
            raise InvalidApply(
                f"a list item leaves out {', '.join(self.list_keys)}, by which the list is merged: {item!r}"
            )
        if len(key) == 1:
            ((name, value),) = key.items()
            if (
                isinstance(value, str)
                and value.isascii()
                and value.isprintable()
                and '"' not in value
                and "\\" not in value
            ):
                return f'k:{{"{name}":"{value}"}}'
        return key_step(key)


def _resolve(document: Document, definitions: Document) -> Document:
    """Follow `$ref` and one-element `allOf`; what stands beside them (default, x-kubernetes-*) is kept and wins."""
    while True:
        reference = document.get("$ref")
        if reference is None:
            whole = document.get("allOf")
            if not whole or len(whole) != 1 or "properties" in document:
                return document
            target, kept = whole[0], {key: value for key, value in document.items() if key != "allOf"}
        else:
            found = definitions.get(reference)
            if found is None:
                found = definitions.get(reference.rpartition("/")[2], {})
            target, kept = found, {key: value for key, value in document.items() if key != "$ref"}
        document = {**target, **kept}


_UNTYPED = Schema()
