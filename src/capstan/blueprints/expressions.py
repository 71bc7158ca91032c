"""CEL in manifests is compiled before any cluster sees it: selectors of device classes, rules of admission policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from capstan import cel

Manifest = dict[str, Any]


def problems(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """(path in the manifest, what is wrong) for every expression that does not compile."""
    spec = manifest.get("spec") or {}
    if manifest["kind"] == "DeviceClass":
        environment = cel.environments.device_selector()
        for number, selector in enumerate(spec.get("selectors") or ()):
            path = f"spec.selectors[{number}].cel.expression"
            yield from _check((selector.get("cel") or {}).get("expression", ""), environment, path)
    elif manifest["kind"] == "ValidatingAdmissionPolicy":
        environment = cel.environments.admission()
        for number, validation in enumerate(spec.get("validations") or ()):
            path = f"spec.validations[{number}].expression"
            yield from _check(validation.get("expression", ""), environment, path)


def _check(expression: str, environment: cel.Environment, path: str) -> Iterator[tuple[str, str]]:
    try:
        cel.compile(expression, environment)
    except cel.CompileError as error:
        yield path, str(error)
