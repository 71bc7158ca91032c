"""CEL in manifests is compiled before any cluster sees it: selectors of device classes, rules of admission policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from capstan import cel
from capstan.blueprints.paths import Path, get

Manifest = dict[str, Any]


def problems(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(path in the manifest, what is wrong) for every expression that does not compile."""
    if manifest["kind"] == "DeviceClass":
        yield from _check(manifest, "selectors", ("cel", "expression"), cel.environments.device_selector())
    elif manifest["kind"] == "ValidatingAdmissionPolicy":
        yield from _check(manifest, "validations", ("expression",), cel.environments.admission())


def _check(manifest: Manifest, field: str, below: Path, environment: cel.Environment) -> Iterator[tuple[str, str]]:
    items = get(manifest, ("spec", field))
    for number, item in enumerate(items if isinstance(items, list) else ()):
        expression = get(item, below)
        if isinstance(expression, str):
            try:
                cel.compile(expression, environment)
            except cel.CompileError as error:
                yield f"spec.{field}[{number}].{'.'.join(below)}", str(error)
