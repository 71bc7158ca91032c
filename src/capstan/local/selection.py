"""Label and field selectors of list, watch and deletecollection requests."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from capstan.api.selectors import InvalidSelector, Requirement, matches_all, parse_selector
from capstan.local.request import Request
from capstan.local.status import bad_request
from capstan.local.store import Record
from capstan.local.types import ResourceType


class _Metadata(msgspec.Struct, gc=False):
    labels: dict[str, str] | None = None


class _Labelled(msgspec.Struct, gc=False):
    metadata: _Metadata


_labels = msgspec.json.Decoder(_Labelled)
_TERM = re.compile(r"([^=!]+)(==|=|!=)(.*)", re.DOTALL)
_SEPARATOR = re.compile(r"(?<!\\),")


def record_labels(record: Record) -> dict[str, str]:
    if record.labels is None:
        record.labels = _labels.decode(record.value).metadata.labels or {}
    return record.labels


class FieldRequirement(msgspec.Struct, frozen=True):
    field: str
    equal: bool
    value: str


class Selection:
    """What a request selects. `matches` caches labels and selectable fields on the record, for the next watcher."""

    def __init__(self, resource: ResourceType, labels: list[Requirement], fields: list[FieldRequirement]) -> None:
        self._resource = resource
        self._labels = labels
        self._fields = fields

    @property
    def empty(self) -> bool:
        return not self._labels and not self._fields

    def equals(self, field: str) -> str | None:
        """The value that a field must have, if the selection pins it."""
        return next((term.value for term in self._fields if term.field == field and term.equal), None)

    def matches(self, record: Record) -> bool:
        if self._fields:
            fields = record_fields(self._resource, record)
            for term in self._fields:
                if (fields.get(term.field, "") == term.value) is not term.equal:
                    return False
        return not self._labels or matches_all(self._labels, record_labels(record))


def record_fields(resource: ResourceType, record: Record) -> Mapping[str, str]:
    """The selectable fields of a stored object, as this version of its resource names them."""
    if record.fields is None:
        record.fields = {}
    found = record.fields.get(resource.api_version)
    if found is None:
        found = resource.selectable_fields(resource.from_storage(record.decode()))
        record.fields[resource.api_version] = found
    return found


def parse(resource: ResourceType, labels: str, fields: str) -> Selection:
    """Raises 400 for a selector that cannot be read or a field that the resource cannot be selected by."""
    try:
        requirements = parse_selector(labels) if labels else []
    except InvalidSelector as error:
        raise bad_request(f"unable to parse requirement: {error}") from error
    terms: list[FieldRequirement] = []
    supported: Mapping[str, str] | None = None
    for text in _SEPARATOR.split(fields) if fields else []:
        found = _TERM.fullmatch(text)
        if found is None:
            raise bad_request(f"invalid selector: '{fields}'; can't understand '{text}'")
        field = found[1].strip()
        supported = supported if supported is not None else resource.selectable_fields({"metadata": {}})
        if field not in supported:
            raise bad_request(f"field label not supported: {field}")
        terms.append(FieldRequirement(field, found[2] != "!=", re.sub(r"\\([\\,=])", r"\1", found[3])))
    return Selection(resource, requirements, terms)


def of_request(resource: ResourceType, request: Request) -> Selection | None:
    """The selection of a list-like request; None when it selects everything."""
    labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
    return parse(resource, labels, fields) if labels or fields else None
