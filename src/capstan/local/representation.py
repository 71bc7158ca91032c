"""How objects are shown: whole, as rows of a Table, or as metadata only, by what the Accept header asks for.

A `View` turns stored bytes into response bytes. Whole objects pass through without being decoded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from capstan.local import status, tables
from capstan.local.registry import Served
from capstan.local.request import Request
from capstan.local.status import Json
from capstan.local.store import decode, encode


class View(Protocol):
    @property
    def identity(self) -> object:
        """Equal for views that show an object as the same bytes."""

    def one(self, value: bytes) -> bytes:
        """A stored object."""

    def many(self, values: Sequence[bytes], metadata: Json) -> bytes:
        """A list of stored objects with the metadata of the list."""


class WholeObjects:
    def __init__(self, served: Served) -> None:
        self._served = served
        self.identity: object = served

    def one(self, value: bytes) -> bytes:
        return self._served.present(value)

    def many(self, values: Sequence[bytes], metadata: Json) -> bytes:
        resource = self._served.type
        start = f'{{"kind":"{resource.list_kind}","apiVersion":"{resource.api_version}","metadata":'.encode()
        items = b",".join([self._served.present(value) for value in values])
        return start + encode(metadata) + b',"items":[' + items + b"]}"


class Tables:
    """`meta.k8s.io/v1 Table`; `include` says what each row carries of its object."""

    def __init__(self, served: Served, include: str) -> None:
        self._served = served
        self._include = include
        self.identity: object = (served, include)

    def one(self, value: bytes) -> bytes:
        document = decode(self._served.present(value))
        return self._table([document], {"resourceVersion": document["metadata"].get("resourceVersion", "")})

    def many(self, values: Sequence[bytes], metadata: Json) -> bytes:
        return self._table([decode(self._served.present(value)) for value in values], metadata)

    def _table(self, documents: list[Json], metadata: Json) -> bytes:
        return encode(
            tables.table(self._served.type, documents, now=time.time(), include=self._include, metadata=metadata)
        )


class MetadataOnly:
    """`meta.k8s.io/v1 PartialObjectMetadata` and its list."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.identity: object = (served, "metadata")

    def one(self, value: bytes) -> bytes:
        return encode(tables.partial(decode(value)))

    def many(self, values: Sequence[bytes], metadata: Json) -> bytes:
        return encode(tables.partial_list((decode(value) for value in values), metadata))


def negotiate(request: Request, served: Served) -> View:
    """The first acceptable form that the client names. Raises 406."""
    accept = request.headers.get("accept", "")
    if accept in ("", "*/*", "application/json"):
        return WholeObjects(served)
    for clause in accept.split(","):
        kind, *parameters = [part.strip() for part in clause.split(";")]
        if kind not in ("application/json", "application/*", "*/*"):
            continue
        wanted = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        form = wanted.get("as", "")
        if form and (wanted.get("g"), wanted.get("v")) != ("meta.k8s.io", "v1"):
            continue
        if not form:
            return WholeObjects(served)
        if form == "Table":
            return Tables(served, request.query.get("includeObject") or "Metadata")
        if form in ("PartialObjectMetadata", "PartialObjectMetadataList"):
            return MetadataOnly(served)
    raise status.not_acceptable()
