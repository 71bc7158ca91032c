"""Pods: conditional defaults, the quality-of-service class, validation and what an update may change.

Rules: k8s.io/kubernetes pkg/apis/core/v1/defaults.go, pkg/apis/core/validation, component-helpers/scheduling/qos.
"""

from __future__ import annotations

import re
from typing import Any

from capstan.api import quantity
from capstan.local.structural_errors import duplicate, forbidden, invalid, not_found, required
from capstan.local.validation import Causes, Object, annotation_values, label_selector, labels

_QOS_RESOURCES = ("cpu", "memory")
_EXTENDED_NATIVE = ("cpu", "memory", "ephemeral-storage", "storage")
_ENV_NAME = re.compile(r"[^=\x00]+")


def default_pod_spec(spec: Object) -> None:
    """Defaults that depend on other fields; the fixed ones come from the schema."""
    for lane in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(lane) or ():
            _default_container(container)
    if account := spec.get("serviceAccountName") or spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for volume in spec.get("volumes") or ():
        if len(volume) == 1:
            volume["emptyDir"] = {}
    if spec.get("hostNetwork"):
        for lane in ("containers", "initContainers"):
            for container in spec.get(lane) or ():
                for port in container.get("ports") or ():
                    if not port.get("hostPort"):
                        port["hostPort"] = port.get("containerPort")


def _default_container(container: Object) -> None:
    if not container.get("imagePullPolicy"):
        container["imagePullPolicy"] = _pull_policy(container.get("image", ""))
    resources = container.get("resources")
    if resources and (limits := resources.get("limits")):
        requests = resources.get("requests")
        if requests is None:
            requests = resources["requests"] = {}
        for name, amount in limits.items():
            if name not in requests:
                requests[name] = amount


def _pull_policy(image: str) -> str:
    """Always for `latest` and for no tag at all, unless a digest pins the image."""
    if "@" in image:
        return "IfNotPresent"
    tag = image.rpartition("/")[2].partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def qos_class(spec: Object) -> str:
    """Guaranteed: CPU and memory requests equal limits everywhere; BestEffort: nothing at all; else Burstable."""
    guaranteed, anything = True, False
    pod_level = spec.get("resources")
    holders = (
        [pod_level]
        if pod_level
        else [
            container.get("resources") or {}
            for lane in ("containers", "initContainers")
            for container in spec.get(lane) or ()
        ]
    )
    for resources in holders:
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        for name in _QOS_RESOURCES:
            request, limit = requests.get(name), limits.get(name)
            if request or limit:
                anything = True
            if not limit or (request or limit) != limit:
                guaranteed = False
    if not anything:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def pod_spec(spec: Object, path: str, causes: Causes, *, template: bool = False) -> None:
    """Validate a pod spec; the schema has checked types, enumerations and required fields."""
    volumes = _volumes(spec.get("volumes") or (), f"{path}.volumes", causes)
    claims = _claims(spec.get("resourceClaims") or (), f"{path}.resourceClaims", causes)
    names: set[str] = set()
    for lane in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(spec.get(lane) or ()):
            below = f"{path}.{lane}[{index}]"
            name = container["name"]
            if name in names:
                causes.append(duplicate(f"{below}.name", name))
            names.add(name)
            _container(container, below, volumes, claims, causes, init=lane == "initContainers")
    if template:
        if spec.get("ephemeralContainers"):
            causes.append(forbidden(f"{path}.ephemeralContainers", "ephemeral containers not allowed in pod template"))
    elif spec.get("ephemeralContainers") and not spec.get("nodeName"):
        causes.append(forbidden(f"{path}.ephemeralContainers", "cannot be set on create"))
    grace = spec.get("terminationGracePeriodSeconds", 0)
    if grace < 0:
        causes.append(invalid(f"{path}.terminationGracePeriodSeconds", grace, "must be greater than or equal to 0"))
    if selector := spec.get("nodeSelector"):
        labels(selector, f"{path}.nodeSelector", causes)
    for index, toleration in enumerate(spec.get("tolerations") or ()):
        _toleration(toleration, f"{path}.tolerations[{index}]", causes)
    for index, spread in enumerate(spec.get("topologySpreadConstraints") or ()):
        label_selector(spread.get("labelSelector"), f"{path}.topologySpreadConstraints[{index}].labelSelector", causes)
    if affinity := spec.get("affinity"):
        _affinity(affinity, f"{path}.affinity", causes)
    gates = [gate["name"] for gate in spec.get("schedulingGates") or ()]
    if gates and spec.get("nodeName") and not template:
        causes.append(forbidden(f"{path}.nodeName", "cannot be set until all schedulingGates have been cleared"))
    if not template and spec.get("hostNetwork") is not True:
        _host_ports(spec, path, causes)


def _host_ports(spec: Object, path: str, causes: Causes) -> None:
    taken: set[tuple[Any, ...]] = set()
    for index, container in enumerate(spec.get("containers") or ()):
        for place, port in enumerate(container.get("ports") or ()):
            if host := port.get("hostPort"):
                key = (host, port.get("protocol"), port.get("hostIP", ""))
                if key in taken:
                    shown = f"{key[2]}/{host}/{key[1]}"
                    causes.append(duplicate(f"{path}.containers[{index}].ports[{place}].hostPort", shown))
                taken.add(key)


def _volumes(volumes: Any, path: str, causes: Causes) -> set[str]:
    names: set[str] = set()
    for index, volume in enumerate(volumes):
        name = volume["name"]
        if name in names:
            causes.append(duplicate(f"{path}[{index}].name", name))
        names.add(name)
        if len(volume) > 2:
            causes.append(forbidden(f"{path}[{index}]", "may not specify more than 1 volume type"))
    return names


def _claims(claims: Any, path: str, causes: Causes) -> set[str]:
    names: set[str] = set()
    for index, claim in enumerate(claims):
        name = claim["name"]
        if name in names:
            causes.append(duplicate(f"{path}[{index}].name", name))
        names.add(name)
        given = [key for key in ("resourceClaimName", "resourceClaimTemplateName") if claim.get(key) is not None]
        if len(given) > 1:
            detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            causes.append(invalid(f"{path}[{index}]", claim, detail))
        elif not given:
            detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"
            causes.append(invalid(f"{path}[{index}]", claim, detail))
    return names


def _container(
    container: Object, path: str, volumes: set[str], claims: set[str], causes: Causes, *, init: bool
) -> None:
    image = container.get("image", "")
    if not image:
        causes.append(required(f"{path}.image"))
    elif image != image.strip():
        causes.append(invalid(f"{path}.image", image, "must not have leading or trailing whitespace"))
    if resources := container.get("resources"):
        resource_requirements(resources, f"{path}.resources", claims, causes)
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        if mount["name"] not in volumes:
            causes.append(not_found(f"{path}.volumeMounts[{index}].name", mount["name"]))
    if mounts := container.get("volumeMounts"):
        seen: set[str] = set()
        for index, mount in enumerate(mounts):
            if mount["mountPath"] in seen:
                causes.append(invalid(f"{path}.volumeMounts[{index}].mountPath", mount["mountPath"], "must be unique"))
            seen.add(mount["mountPath"])
    for index, variable in enumerate(container.get("env") or ()):
        below = f"{path}.env[{index}]"
        if not _ENV_NAME.fullmatch(variable["name"]):
            causes.append(
                invalid(f"{below}.name", variable["name"], "a valid environment variable name must not contain '='")
            )
        source = variable.get("valueFrom")
        if source is not None:
            if variable.get("value"):
                causes.append(invalid(f"{below}.valueFrom", "", "may not be specified when `value` is not empty"))
            elif len(source) != 1:
                causes.append(invalid(f"{below}.valueFrom", "", "must specify exactly one source"))
    restart = container.get("restartPolicy")
    if restart and init and restart != "Always":
        causes.append(invalid(f"{path}.restartPolicy", restart, "must be Always for a sidecar"))


def resource_requirements(resources: Object, path: str, claims: set[str] | None, causes: Causes) -> None:
    """Quantities are not negative, requests within limits, extended resources whole and not overcommitted."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for lane, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            try:
                value = quantity.parse(amount)
            except quantity.InvalidQuantity as wrong:
                causes.append(invalid(f"{path}.{lane}[{name}]", amount, str(wrong)))
                continue
            if value < 0:
                causes.append(invalid(f"{path}.{lane}[{name}]", amount, "must be greater than or equal to 0"))
            elif not _is_native(name) and value != value.to_integral_value():
                causes.append(invalid(f"{path}.{lane}[{name}]", amount, "must be an integer"))
    for name, amount in requests.items():
        limit = limits.get(name)
        if limit is None:
            if not _is_native(name):
                detail = f"must be specified for {name}: a resource that cannot be overcommitted"
                causes.append(required(f"{path}.limits", detail))
        elif limit != amount:
            try:
                too_much = quantity.parse(amount) > quantity.parse(limit)
            except quantity.InvalidQuantity:
                continue
            if not _is_native(name):
                detail = f"must be equal to {name} limit of {limit}"
                causes.append(invalid(f"{path}.requests", amount, detail))
            elif too_much:
                detail = f"must be less than or equal to {name} limit of {limit}"
                causes.append(invalid(f"{path}.requests", amount, detail))
    if claims is not None:
        for index, claim in enumerate(resources.get("claims") or ()):
            if claim["name"] not in claims:
                causes.append(not_found(f"{path}.claims[{index}].name", claim["name"]))


def _is_native(name: str) -> bool:
    return name in _EXTENDED_NATIVE or ("/" not in name and not name.startswith("hugepages-"))


def _toleration(toleration: Object, path: str, causes: Causes) -> None:
    operator, key = toleration.get("operator", "Equal"), toleration.get("key", "")
    if not key and operator != "Exists":
        detail = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
        causes.append(invalid(f"{path}.operator", operator, detail))
    if operator == "Exists" and toleration.get("value"):
        causes.append(invalid(f"{path}.operator", toleration, "value must be empty when `operator` is 'Exists'"))
    if toleration.get("tolerationSeconds") is not None and toleration.get("effect") != "NoExecute":
        detail = "effect must be 'NoExecute' when `tolerationSeconds` is set"
        causes.append(invalid(f"{path}.effect", toleration.get("effect", ""), detail))


def node_selector(selector: Object, path: str, causes: Causes) -> None:
    for place, term in enumerate(selector.get("nodeSelectorTerms") or ()):
        _node_term(term, f"{path}.nodeSelectorTerms[{place}]", causes)


def _node_term(term: Object, path: str, causes: Causes) -> None:
    for index, requirement in enumerate(term.get("matchExpressions") or ()):
        below = f"{path}.matchExpressions[{index}]"
        operator, values = requirement["operator"], requirement.get("values") or []
        if operator in ("In", "NotIn") and not values:
            causes.append(required(f"{below}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist") and values:
            causes.append(
                forbidden(f"{below}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
            )
        elif operator in ("Gt", "Lt") and len(values) != 1:
            causes.append(required(f"{below}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'"))


def _affinity(affinity: Object, path: str, causes: Causes) -> None:
    node = affinity.get("nodeAffinity") or {}
    required_path = f"{path}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    node_selector(node.get("requiredDuringSchedulingIgnoredDuringExecution") or {}, required_path, causes)
    for index, term in enumerate(node.get("preferredDuringSchedulingIgnoredDuringExecution") or ()):
        below = f"{path}.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[{index}].preference"
        _node_term(term["preference"], below, causes)
    for side in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(side) or {}
        for index, term in enumerate(rules.get("requiredDuringSchedulingIgnoredDuringExecution") or ()):
            below = f"{path}.{side}.requiredDuringSchedulingIgnoredDuringExecution[{index}].labelSelector"
            label_selector(term.get("labelSelector"), below, causes)


def pod_template(template: Object, path: str, causes: Causes) -> None:
    """Validate the template of a controller."""
    meta = template.get("metadata") or {}
    labels(meta.get("labels") or {}, f"{path}.metadata.labels", causes)
    annotation_values(meta.get("annotations") or {}, f"{path}.metadata.annotations", causes)
    if (spec := template.get("spec")) is None:
        causes.append(required(f"{path}.spec"))
    else:
        pod_spec(spec, f"{path}.spec", causes, template=True)


_MUTABLE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def pod_update(new: Object, old: Object, causes: Causes) -> None:
    """What may change in the spec of a pod after it was created."""
    after, before = new["spec"], old["spec"]
    if after == before:
        return
    gates_after = [gate["name"] for gate in after.get("schedulingGates") or ()]
    gates_before = [gate["name"] for gate in before.get("schedulingGates") or ()]
    if added := [name for name in gates_after if name not in gates_before]:
        causes.append(
            forbidden("spec.schedulingGates", f"only deletion is allowed, but found new scheduling gate '{added[0]}'")
        )
    tolerations = after.get("tolerations") or []
    if any(toleration not in tolerations for toleration in before.get("tolerations") or ()):
        causes.append(
            forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")
        )
    deadline, earlier = after.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds")
    if earlier is not None and (deadline is None or deadline > earlier):
        causes.append(invalid("spec.activeDeadlineSeconds", deadline, "must be less than or equal to previous value"))
    gated = bool(gates_before)
    if _frozen(after, gated=gated) != _frozen(before, gated=gated):
        causes.append(forbidden("spec", _MUTABLE))


def _frozen(spec: Object, *, gated: bool) -> Object:
    """The part of a spec that may not change; a gated pod may still get a narrower node selection (KEP-3838)."""
    loose = {"activeDeadlineSeconds", "tolerations", "schedulingGates", "terminationGracePeriodSeconds"}
    if gated:
        loose |= {"nodeSelector", "affinity"}
    kept = {key: value for key, value in spec.items() if key not in loose}
    for lane in ("containers", "initContainers"):
        if lane in kept:
            kept[lane] = [{k: v for k, v in container.items() if k != "image"} for container in kept[lane]]
    return kept
