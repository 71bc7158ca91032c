"""The environment of a simulated container: literal values and the downward API (`fieldRef`)."""

from __future__ import annotations

import re

from capstan.api.core import Container, Pod

_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")


def environment(pod: Pod, container: Container, node_ip: str = "", pod_ip: str = "") -> dict[str, str]:
    """By name. Values from config maps, secrets and resource fields are not simulated and left out."""
    fields = {
        "metadata.name": pod.metadata.name,
        "metadata.namespace": pod.metadata.namespace,
        "metadata.uid": pod.metadata.uid,
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": pod.spec.service_account_name,
        "status.hostIP": node_ip,
        "status.podIP": pod_ip,
    }
    found: dict[str, str] = {}
    for variable in container.env:
        if variable.value_from is None:
            found[variable.name] = variable.value
            continue
        path = (variable.value_from.get("fieldRef") or {}).get("fieldPath", "")
        if keyed := _KEYED.fullmatch(path):
            source = pod.metadata.labels if keyed[1] == "labels" else pod.metadata.annotations
            found[variable.name] = source.get(keyed[2], "")
        elif path in fields:
            found[variable.name] = fields[path]
    return found
