"""What `kubectl get` shows: Table answers and PartialObjectMetadata, as plain dicts.

A printer is a tuple of columns and a function from an object and the time to cells. Built-in kinds have theirs in
`local.tables_builtin`, custom resources get one from `additionalPrinterColumns`; every other kind shows name and age.
Rules: metav1 Table (KEP-555), k8s.io/kubernetes pkg/printers/internalversion, apiextensions tableconvertor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from capstan.api import clock
from capstan.local.tables_jsonpath import JsonPath
from capstan.local.types_base import Column, Object

if TYPE_CHECKING:
    from capstan.local.types_base import ResourceType

Cells = Callable[[Object, float], list[Any]]

UNKNOWN = "<unknown>"
NONE = "<none>"

NAME = Column("Name", "string", "name", "The name, unique within the namespace and kind.")
AGE = Column("Age", "string", "", "Time since the object was created.")


class Printer(NamedTuple):
    columns: tuple[Column, ...]
    cells: Cells


def human_duration(seconds: float) -> str:
    """A duration as kubectl prints ages: two units while they matter (`90s`, `5m30s`, `3h12m`, `2d4h`, `35d`)."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 0:
        return "0s"
    if whole < 120:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 8:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days, hours = divmod(hours, 24)
    if days < 8:
        return f"{days}d{hours}h" if hours else f"{days}d"
    if days < 730:
        return f"{days}d"
    years, days = divmod(days, 365)
    if years < 8:
        return f"{years}y{days}d" if days else f"{years}y"
    return f"{years}y"


@lru_cache(maxsize=65536)
def _seconds(timestamp: str) -> float | None:
    try:
        return clock.parse(timestamp)
    except ValueError:
        return None


def since(timestamp: object, now: float) -> str:
    """The age of an RFC 3339 timestamp."""
    seconds = _seconds(timestamp) if isinstance(timestamp, str) and timestamp else None
    return UNKNOWN if seconds is None else human_duration(now - seconds)


def age(obj: Object, now: float) -> str:
    return since(obj["metadata"].get("creationTimestamp"), now)


def _plain_cells(obj: Object, now: float) -> list[Any]:
    return [obj["metadata"].get("name", ""), age(obj, now)]


PLAIN = Printer((NAME, AGE), _plain_cells)


def custom(columns: list[Object]) -> Printer:
    """The printer of a custom resource: its name, then the CRD's columns (age when there are none)."""
    if not columns:
        return PLAIN
    made = [
        Column(
            column["name"],
            column.get("type", "string"),
            column.get("format", ""),
            column.get("description", ""),
            column.get("priority", 0),
        )
        for column in columns
    ]
    paths = [(JsonPath(column["jsonPath"]), column.get("type", "string")) for column in columns]

    def cells(obj: Object, now: float) -> list[Any]:
        return [obj["metadata"].get("name", ""), *(_custom_cell(path.find(obj), kind, now) for path, kind in paths)]

    return Printer((NAME, *made), cells)


def _custom_cell(found: list[Any], kind: str, now: float) -> Any:
    """One value per cell; several become a list in text. A value of the wrong type is not shown."""
    if not found or found[0] is None:
        return None
    value = found[0] if len(found) == 1 else found
    if kind == "date":
        return since(value, now)
    if kind in ("integer", "number"):
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if kind == "boolean":
        return value if isinstance(value, bool) else None
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def rows(resource: ResourceType, objects: Iterable[Object], now: float, include: str = "Metadata") -> list[Object]:
    """Table rows. `include` is the request's `includeObject`: Metadata, Object or None."""
    cells = resource.printer.cells
    made: list[Object] = []
    for obj in objects:
        row: Object = {"cells": cells(obj, now)}
        if include == "Metadata":
            row["object"] = partial(obj)
        elif include == "Object":
            row["object"] = obj
        made.append(row)
    return made


def table(
    resource: ResourceType,
    objects: Iterable[Object],
    *,
    now: float,
    include: str = "Metadata",
    metadata: Object | None = None,
    headers: bool = True,
) -> Object:
    """A `meta.k8s.io/v1` Table. Watch events after the first one of a stream leave the headers out."""
    columns = [
        {
            "name": column.name,
            "type": column.type,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        }
        for column in resource.printer.columns
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata or {},
        "columnDefinitions": columns if headers else [],
        "rows": rows(resource, objects, now, include),
    }


def partial(obj: Object) -> Object:
    """The object as PartialObjectMetadata."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj.get("metadata", {})}


def partial_list(objects: Iterable[Object], list_metadata: Object) -> Object:
    return {
        "kind": "PartialObjectMetadataList",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_metadata,
        "items": [partial(obj) for obj in objects],
    }
