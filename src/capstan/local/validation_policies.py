"""Policies: RBAC roles and bindings, admission policies in CEL and their bindings.

Rules: k8s.io/kubernetes pkg/apis/rbac/validation and pkg/apis/admissionregistration/validation (KEP-3488, KEP-3962).
Expressions are compiled here, so that a policy that could never run is refused when it is written.
"""

from __future__ import annotations

from typing import Any

from capstan import cel
from capstan.cel.types import BOOL, STRING, Type
from capstan.local.structural_errors import invalid, required, unsupported
from capstan.local.validation import Causes, Object

_RBAC = "rbac.authorization.k8s.io"


def default_subjects(binding: Object) -> None:
    role = binding.get("roleRef")
    if role is not None:
        role.setdefault("apiGroup", _RBAC)
    for subject in binding.get("subjects") or ():
        if not subject.get("apiGroup") and subject.get("kind") in ("User", "Group"):
            subject["apiGroup"] = _RBAC


def validate_role(new: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    namespaced = new["kind"] == "Role"
    for index, rule in enumerate(new.get("rules") or ()):
        path = f"rules[{index}]"
        if not rule.get("verbs"):
            causes.append(required(f"{path}.verbs", "verbs must contain at least one value"))
        if rule.get("nonResourceURLs"):
            if namespaced:
                detail = "namespaced rules cannot apply to non-resource URLs"
                causes.append(invalid(f"{path}.nonResourceURLs", rule["nonResourceURLs"], detail))
            if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
                detail = "rules cannot apply to both regular resources and non-resource URLs"
                causes.append(invalid(f"{path}.nonResourceURLs", rule["nonResourceURLs"], detail))
        elif not rule.get("apiGroups"):
            causes.append(required(f"{path}.apiGroups", "resource rules must supply at least one api group"))
        elif not rule.get("resources"):
            causes.append(required(f"{path}.resources", "resource rules must supply at least one resource"))
    return causes


def validate_role_binding(new: Object, old: Object | None) -> Causes:
    causes: Causes = []
    role = new["roleRef"]
    if role.get("apiGroup") != _RBAC:
        causes.append(unsupported("roleRef.apiGroup", role.get("apiGroup"), [_RBAC]))
    kinds = ["ClusterRole"] if new["kind"] == "ClusterRoleBinding" else ["ClusterRole", "Role"]
    if role.get("kind") not in kinds:
        causes.append(unsupported("roleRef.kind", role.get("kind"), list(kinds)))
    for index, subject in enumerate(new.get("subjects") or ()):
        path = f"subjects[{index}]"
        if subject["kind"] not in ("User", "Group", "ServiceAccount"):
            causes.append(unsupported(f"{path}.kind", subject["kind"], ["ServiceAccount", "User", "Group"]))
        elif subject["kind"] == "ServiceAccount" and not subject.get("namespace"):
            causes.append(required(f"{path}.namespace"))
    if old is not None and role != old.get("roleRef"):
        causes.append(invalid("roleRef", role, "cannot change roleRef"))
    return causes


def validate_policy_binding(new: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    spec = new["spec"]
    if not spec.get("policyName"):
        causes.append(required("spec.policyName"))
    if new["kind"].startswith("Validating"):
        actions = spec.get("validationActions") or ()
        if not actions:
            causes.append(required("spec.validationActions"))
        for index, action in enumerate(actions):
            if action not in ("Deny", "Warn", "Audit"):
                causes.append(unsupported(f"spec.validationActions[{index}]", action, ["Audit", "Deny", "Warn"]))
    return causes


class _Expressions:
    """Compiles the expressions of one policy; each sees the variables defined before it."""

    def __init__(self, spec: Object, causes: Causes, *, mutating: bool) -> None:
        self._params = spec.get("paramKind") is not None
        self._mutating = mutating
        self._causes = causes
        self._variables: dict[str, Type] = {}

    def check(self, source: Any, path: str, result: Type | None, *, variables: bool = True) -> Type | None:
        """The type of the expression, or None when it was refused."""
        environment = cel.environments.admission(
            self._variables if variables else None, params=self._params, mutating=self._mutating, result=result
        )
        try:
            return cel.compile(str(source), environment).result
        except cel.CompileError as wrong:
            self._causes.append(invalid(path, source, f"compilation failed: {wrong}"))
            return None

    def define(self, name: str, source: Any, path: str) -> None:
        if (found := self.check(source, path, None)) is not None:
            self._variables[name] = found


def validate_policy(new: Object, _old: Object | None) -> Causes:
    causes: Causes = []
    spec = new["spec"]
    mutating = new["kind"].startswith("Mutating")
    rules = "mutations" if mutating else "validations"
    if not spec.get(rules) and not spec.get("auditAnnotations"):
        causes.append(required(f"spec.{rules}", "at least one must be given"))
    match = spec.get("matchConstraints")
    if match is None:
        causes.append(required("spec.matchConstraints"))
    elif not match.get("resourceRules"):
        causes.append(required("spec.matchConstraints.resourceRules"))
    expressions = _Expressions(spec, causes, mutating=mutating)
    for index, condition in enumerate(spec.get("matchConditions") or ()):
        expressions.check(condition["expression"], f"spec.matchConditions[{index}].expression", BOOL, variables=False)
    for index, variable in enumerate(spec.get("variables") or ()):
        expressions.define(variable["name"], variable["expression"], f"spec.variables[{index}].expression")
    for index, rule in enumerate(spec.get("validations") or ()):
        path = f"spec.validations[{index}]"
        expressions.check(rule["expression"], f"{path}.expression", BOOL)
        if rule.get("messageExpression"):
            expressions.check(rule["messageExpression"], f"{path}.messageExpression", STRING)
    for index, annotation in enumerate(spec.get("auditAnnotations") or ()):
        expressions.check(annotation["valueExpression"], f"spec.auditAnnotations[{index}].valueExpression", None)
    for index, mutation in enumerate(spec.get("mutations") or ()):
        _mutation(mutation, f"spec.mutations[{index}]", expressions, causes)
    return causes


def _mutation(mutation: Object, path: str, expressions: _Expressions, causes: Causes) -> None:
    field = {"ApplyConfiguration": "applyConfiguration", "JSONPatch": "jsonPatch"}[mutation["patchType"]]
    source = (mutation.get(field) or {}).get("expression")
    if not source:
        causes.append(required(f"{path}.{field}.expression"))
    else:
        expressions.check(source, f"{path}.{field}.expression", None)
