"""`policies`: rules in CEL, compiled to ValidatingAdmissionPolicy and its binding.

A rule brings its own expression or takes one from the catalogue by name. The action is what the binding does with a
violation. Expressions are parsed when the blueprint is linted, so that a typing error never reaches a cluster.
"""

from __future__ import annotations

from typing import Any, Literal

from capstan.blueprints.components.values import InvalidValues, Manifest, Values, manifest

_CONTAINERS = (
    "(object.spec.containers"
    " + (has(object.spec.initContainers) ? object.spec.initContainers : [])"
    " + (has(object.spec.ephemeralContainers) ? object.spec.ephemeralContainers : []))"
)
_PODS = [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["pods"]}]
_CLAIMS = [
    {
        "apiGroups": ["resource.k8s.io"],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["resourceclaims", "resourceclaimtemplates"],
    }
]
_GPU_POD = (
    "((has(object.spec.resourceClaims) && size(object.spec.resourceClaims) > 0)"
    " || object.spec.containers.exists(c, has(c.resources) && has(c.resources.limits)"
    " && c.resources.limits.exists(name, name.startsWith('nvidia.com/'))))"
)


class Rule(Values):
    from_catalogue: str = ""
    """The name of a ready rule; see CATALOGUE."""
    expression: str = ""
    message: str = ""
    match: list[dict[str, Any]] = []
    """`resourceRules` as in a ValidatingAdmissionPolicy; creating and updating pods by default."""
    namespaces: dict[str, Any] = {}
    """A label selector of namespaces."""
    action: Literal["Deny", "Warn", "Audit"] = "Deny"


class Policies(Values):
    rules: dict[str, Rule]


class Ready(Values):
    expression: str
    message: str
    match: list[dict[str, Any]]


CATALOGUE: dict[str, Ready] = {
    "no-privileged": Ready(
        expression=f"{_CONTAINERS}.all(c, !has(c.securityContext) || !has(c.securityContext.privileged)"
        " || c.securityContext.privileged == false)",
        message="privileged containers see every GPU of the node; remove securityContext.privileged",
        match=_PODS,
    ),
    "no-gpu-host-paths": Ready(
        expression="!has(object.spec.volumes) || object.spec.volumes.all(v, !has(v.hostPath)"
        " || !(v.hostPath.path == '/' || v.hostPath.path == '/dev' || v.hostPath.path.startsWith('/dev/nvidia')"
        " || v.hostPath.path.startsWith('/dev/vfio') || v.hostPath.path.startsWith('/var/run/cdi')"
        " || v.hostPath.path.startsWith('/etc/cdi')))",
        message="GPU device files are reached through claims, not through hostPath volumes",
        match=_PODS,
    ),
    "no-visible-devices": Ready(
        expression=f"{_CONTAINERS}.all(c, !has(c.env) || c.env.all(e, e.name != 'NVIDIA_VISIBLE_DEVICES'"
        " || (has(e.value) && e.value in ['void', 'none'])))",
        message="NVIDIA_VISIBLE_DEVICES would bypass the allocation; request GPUs with a claim or a resource limit",
        match=_PODS,
    ),
    "require-queue": Ready(
        expression=f"!{_GPU_POD} || (has(object.metadata.labels) && 'kai.scheduler/queue' in object.metadata.labels)",
        message="pods that ask for GPUs name their queue in the label kai.scheduler/queue",
        match=_PODS,
    ),
    "no-admin-access": Ready(
        expression="(has(object.spec.spec) ? object.spec.spec : object.spec).devices.requests.all(r,"
        " !has(r.exactly) || !has(r.exactly.adminAccess) || r.exactly.adminAccess == false)",
        message="admin access to devices is for operators",
        match=_CLAIMS,
    ),
}


def render(values: Policies) -> list[Manifest]:
    rendered: list[Manifest] = []
    for name, rule in values.rules.items():
        expression, message, match = _rule(name, rule)
        rendered.append(
            manifest(
                "admissionregistration.k8s.io/v1",
                "ValidatingAdmissionPolicy",
                name,
                spec={
                    "failurePolicy": "Fail",
                    "matchConstraints": {"resourceRules": match},
                    "validations": [{"expression": expression, "message": message}],
                },
            )
        )
        binding: dict[str, Any] = {"policyName": name, "validationActions": [rule.action]}
        if rule.namespaces:
            binding["matchResources"] = {"namespaceSelector": rule.namespaces}
        rendered.append(
            manifest("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding", name, spec=binding)
        )
    return rendered


def _rule(name: str, rule: Rule) -> tuple[str, str, list[dict[str, Any]]]:
    if rule.from_catalogue:
        ready = CATALOGUE.get(rule.from_catalogue)
        if ready is None:
            hint = f"take one of {', '.join(sorted(CATALOGUE))}, or write an expression"
            raise InvalidValues(f"rules.{name}.fromCatalogue", f"unknown rule {rule.from_catalogue!r}", hint)
        if rule.expression:
            raise InvalidValues(f"rules.{name}", "states fromCatalogue and expression", "remove one of them")
        return ready.expression, rule.message or ready.message, rule.match or ready.match
    if not rule.expression:
        raise InvalidValues(f"rules.{name}", "needs an expression or fromCatalogue")
    return rule.expression, rule.message or f"violates the policy {name}", rule.match or _PODS
