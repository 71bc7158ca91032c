"""Rules every object obeys: names, labels, annotations, owner references, finalizers, selectors.

Causes are those of k8s.io/apimachinery validation: field path, reason and message as kubectl users know them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from capstan.api.base import StatusCause
from capstan.local.structural_errors import forbidden, format_error, invalid, not_found, required, too_long, unsupported

Object = dict[str, Any]
Causes = list[StatusCause]

MAX_ANNOTATIONS = 256 * 1024

_QUALIFIED_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_KEY_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start "
    "and end "
    "with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_IMMUTABLE = "field is immutable"

_known_keys: set[str] = set()
_known_values: set[str] = set()
_known_names: set[tuple[str, str]] = set()
_KNOWN_LIMIT = 16384


def key_error(key: str) -> str | None:
    """What is wrong with a label or annotation key."""
    if key in _known_keys:
        return None
    prefix, slash, name = key.rpartition("/")
    if slash and not prefix:
        return "prefix part must be non-empty"
    if prefix and (len(prefix) > 253 or not _PREFIX.fullmatch(prefix)):
        return f"prefix part {format_error('k8s-long-name', prefix) or 'must be a DNS subdomain'}"
    if not name:
        return "name part must be non-empty"
    if len(name) > 63:
        return "name part must be no more than 63 characters"
    if not _QUALIFIED_NAME.fullmatch(name):
        return _KEY_RULE
    if len(_known_keys) < _KNOWN_LIMIT:
        _known_keys.add(key)
    return None


def label_value_error(value: str) -> str | None:
    if value in _known_values:
        return None
    if len(value) > 63:
        return "must be no more than 63 characters"
    if not _LABEL_VALUE.fullmatch(value):
        return _VALUE_RULE
    if len(_known_values) < _KNOWN_LIMIT:
        _known_values.add(value)
    return None


def labels(values: Mapping[str, str], path: str, causes: Causes) -> None:
    for key, value in values.items():
        if key not in _known_keys and (wrong := key_error(key)):
            causes.append(invalid(path, key, wrong))
        if value not in _known_values and (wrong := label_value_error(value)):
            causes.append(invalid(path, value, wrong))


def annotation_values(values: Mapping[str, str], path: str, causes: Causes) -> None:
    size = 0
    for key, value in values.items():
        if key not in _known_keys and (wrong := key_error(key.lower())):
            causes.append(invalid(path, key, wrong))
        size += len(key) + len(value)
    if size > MAX_ANNOTATIONS:
        causes.append(too_long(path, MAX_ANNOTATIONS))


def path_segment_error(name: str) -> str | None:
    """RBAC names may be any path segment."""
    if name in (".", ".."):
        return f"may not be '{name}'"
    for bad in ("/", "%"):
        if bad in name:
            return f"may not contain '{bad}'"
    return None


def name_error(name: str, rule: str) -> str | None:
    """`rule` is `k8s-short-name`, `k8s-long-name` or `path-segment`."""
    return path_segment_error(name) if rule == "path-segment" else format_error(rule, name)


def metadata(obj: Object, *, namespaced: bool, name_rule: str) -> Causes:
    """Rules of ObjectMeta, on create and update."""
    causes: Causes = []
    meta = obj.get("metadata", {})
    name = meta.get("name", "")
    if not name:
        causes.append(required("metadata.name", "name or generateName is required"))
    elif wrong := name_error(name, name_rule):
        causes.append(invalid("metadata.name", name, wrong))
    namespace = meta.get("namespace", "")
    if namespaced:
        if not namespace:
            causes.append(required("metadata.namespace"))
        elif wrong := format_error("k8s-short-name", namespace):
            causes.append(invalid("metadata.namespace", namespace, wrong))
    elif namespace:
        causes.append(forbidden("metadata.namespace", "not allowed on this type"))
    if values := meta.get("labels"):
        labels(values, "metadata.labels", causes)
    if values := meta.get("annotations"):
        annotation_values(values, "metadata.annotations", causes)
    if owners := meta.get("ownerReferences"):
        _owners(owners, causes)
    for index, finalizer in enumerate(meta.get("finalizers", ())):
        if wrong := key_error(finalizer):
            causes.append(invalid(f"metadata.finalizers[{index}]", finalizer, wrong))
    return causes


def _owners(owners: list[Object], causes: Causes) -> None:
    controllers = 0
    for index, owner in enumerate(owners):
        path = f"metadata.ownerReferences[{index}]"
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                causes.append(invalid(f"{path}.{field}", owner.get(field, ""), "must not be empty"))
        controllers += owner.get("controller") is True
    if controllers > 1:
        causes.append(
            invalid("metadata.ownerReferences", controllers, "Only one reference can have Controller set to true")
        )


def metadata_update(new: Object, old: Object) -> Causes:
    """What an update may not change in ObjectMeta."""
    causes: Causes = []
    after, before = new.get("metadata", {}), old.get("metadata", {})
    for field in ("name", "namespace", "uid", "creationTimestamp"):
        if after.get(field) != before.get(field):
            causes.append(invalid(f"metadata.{field}", after.get(field), _IMMUTABLE))
    if before.get("deletionTimestamp") and (
        added := set(after.get("finalizers", ())) - set(before.get("finalizers", ()))
    ):
        kept = ", ".join(f'"{name}"' for name in sorted(added))
        causes.append(
            forbidden(
                "metadata.finalizers",
                f"no new finalizers can be added if the object is being deleted, found new finalizers "
                f"[]string{{{kept}}}",
            )
        )
    return causes


def immutable(new: Any, old: Any, path: str, causes: Causes) -> None:
    if new != old:
        causes.append(invalid(path, new, _IMMUTABLE))


_LABEL_OPERATORS = ["In", "NotIn", "Exists", "DoesNotExist"]


def label_selector(selector: Object | None, path: str, causes: Causes) -> None:
    """Rules of metav1.LabelSelector."""
    if not selector:
        return
    labels(selector.get("matchLabels", {}), f"{path}.matchLabels", causes)
    for index, requirement in enumerate(selector.get("matchExpressions", ())):
        below = f"{path}.matchExpressions[{index}]"
        operator, values = requirement.get("operator", ""), requirement.get("values", [])
        if operator in ("In", "NotIn"):
            if not values:
                causes.append(required(f"{below}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                causes.append(
                    forbidden(f"{below}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
                )
        else:
            causes.append(unsupported(f"{below}.operator", operator, _LABEL_OPERATORS))
        if wrong := key_error(requirement.get("key", "")):
            causes.append(invalid(f"{below}.key", requirement.get("key", ""), wrong))


def selects(selector: Object, values: Mapping[str, str]) -> bool:
    """Whether a (valid) label selector matches labels."""
    if any(values.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for requirement in selector.get("matchExpressions", ()):
        present = values.get(requirement["key"])
        wanted = requirement.get("values", [])
        if not {
            "In": present is not None and present in wanted,
            "NotIn": present is None or present not in wanted,
            "Exists": present is not None,
            "DoesNotExist": present is None,
        }[requirement["operator"]]:
            return False
    return True


def reference_exists(name: str, names: set[str], path: str, causes: Causes) -> None:
    if name not in names:
        causes.append(not_found(path, name))
