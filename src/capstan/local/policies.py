"""ValidatingAdmissionPolicy and MutatingAdmissionPolicy: CEL that users bring to admission (KEP-3488, KEP-3962).

Policies are compiled when they are first needed after a change. A policy that does not compile is refused when it is
written. Policies do not apply to admission configuration itself, so that a wrong one can always be corrected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from capstan import cel, fields
from capstan.api.base import StatusCause, Struct
from capstan.api.selectors import LabelSelector
from capstan.cel import environments
from capstan.cel.types import BOOL, STRING, Type
from capstan.fields.typed import merge
from capstan.local import status
from capstan.local.admission import Attributes
from capstan.local.registry import Registry
from capstan.local.status import Json
from capstan.local.store import Event, Store

GROUP = "admissionregistration.k8s.io"
_CODES = {"Unauthorized": 401, "Forbidden": 403, "Invalid": 422, "RequestEntityTooLarge": 413}


class Rule(Struct):
    api_groups: list[str] = []
    api_versions: list[str] = []
    operations: list[str] = []
    resources: list[str] = []
    resource_names: list[str] = []
    scope: str = "*"


class MatchResources(Struct):
    namespace_selector: LabelSelector | None = None
    object_selector: LabelSelector | None = None
    resource_rules: list[Rule] = []
    exclude_resource_rules: list[Rule] = []
    match_policy: str = "Equivalent"


class Named(Struct):
    name: str = ""
    expression: str = ""


class Validation(Struct):
    expression: str = ""
    message: str = ""
    message_expression: str = ""
    reason: str = "Invalid"


class Expression(Struct):
    expression: str = ""


class Mutation(Struct):
    """`patchType` says which of the two expressions it is."""

    patch_type: str = ""
    apply_configuration: Expression | None = None
    json_patch: Expression | None = None


class ParamKind(Struct):
    api_version: str = ""
    kind: str = ""


class PolicySpec(Struct):
    param_kind: ParamKind | None = None
    match_constraints: MatchResources = msgspec.field(default_factory=MatchResources)
    validations: list[Validation] = []
    mutations: list[Mutation] = []
    reinvocation_policy: str = "Never"
    failure_policy: str = "Fail"
    match_conditions: list[Named] = []
    variables: list[Named] = []


class ParamRef(Struct):
    name: str = ""
    namespace: str = ""
    selector: LabelSelector | None = None
    parameter_not_found_action: str = "Deny"


class BindingSpec(Struct):
    """`validation_actions` is not part of a mutating policy's binding: what fails there is refused."""

    policy_name: str = ""
    param_ref: ParamRef | None = None
    match_resources: MatchResources | None = None
    validation_actions: list[str] = msgspec.field(default_factory=lambda: ["Deny"])


class _Meta(Struct):
    name: str = ""


class _Policy(Struct):
    metadata: _Meta
    spec: PolicySpec = msgspec.field(default_factory=PolicySpec)


class _Binding(Struct):
    metadata: _Meta
    spec: BindingSpec = msgspec.field(default_factory=BindingSpec)


class Compiled:
    """A policy's programs. Raises `Uncompilable`, which names the field."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec
        self.problem = ""
        """Why nothing of it can be evaluated."""
        types: dict[str, Type] = {}
        params = spec.param_kind is not None

        def compiled(expression: str, field: str, result: Type | None, *, mutating: bool = False) -> cel.Program:
            environment = environments.admission(
                types, params=params, authorizer=False, mutating=mutating, result=result
            )
            try:
                return cel.compile(expression, environment)
            except cel.CompileError as error:
                raise Uncompilable(field, expression, str(error)) from error

        # Match conditions see no variables.
        self.conditions = [
            (each.name, compiled(each.expression, f"spec.matchConditions[{index}].expression", BOOL))
            for index, each in enumerate(spec.match_conditions)
        ]
        self.variables: list[tuple[str, cel.Program]] = []
        for index, variable in enumerate(spec.variables):
            program = compiled(variable.expression, f"spec.variables[{index}].expression", None)
            types[variable.name] = program.result
            self.variables.append((variable.name, program))
        self.validations = [
            (each, compiled(each.expression, f"spec.validations[{index}].expression", BOOL), message)
            for index, each in enumerate(spec.validations)
            for message in [
                compiled(each.message_expression, f"spec.validations[{index}].messageExpression", STRING)
                if each.message_expression
                else None
            ]
        ]
        self.mutations: list[cel.Program] = []
        for index, mutation in enumerate(spec.mutations):
            form = "jsonPatch" if mutation.patch_type == "JSONPatch" else "applyConfiguration"
            given = mutation.json_patch if form == "jsonPatch" else mutation.apply_configuration
            where = f"spec.mutations[{index}].{form}.expression"
            self.mutations.append(compiled(given.expression if given else "", where, None, mutating=True))


class Uncompilable(ValueError):
    """An expression of a policy that does not compile."""

    def __init__(self, field: str, expression: str, problem: str) -> None:
        super().__init__(problem)
        self.cause = StatusCause(
            reason="FieldValueInvalid",
            message=f'Invalid value: "{expression}": compilation failed: {problem}',
            field=field,
        )


class Policies:
    """The policies of one kind, `Validating` or `Mutating`, as a plugin of the chain's part of that name."""

    def __init__(self, store: Store, registry: Registry, kind: Literal["Validating", "Mutating"]) -> None:
        self._store = store
        self._registry = registry
        self._kind = f"{kind}AdmissionPolicy"
        self._plural = f"{kind.lower()}admissionpolicies"
        self._policies = f"/{GROUP}/{self._plural}/"
        self._policy_bindings = f"/{GROUP}/{kind.lower()}admissionpolicybindings/"
        self._compiled: dict[str, Compiled] | None = None
        self._bindings: list[_Binding] = []
        for prefix in (self._policies, self._policy_bindings):
            store.table(prefix).listeners.append(self._changed)

    def _changed(self, _event: Event) -> None:
        self._compiled = None

    def admit(self, attributes: Attributes) -> None:
        """The plugin. Raises Refused, with the reason that a failed validation names."""
        if attributes.resource.group == GROUP:
            self._check(attributes)
            return
        if self._compiled is None:
            self._load()
            assert self._compiled is not None
        if not self._compiled:
            return
        again: list[tuple[Compiled, _Binding, bytes]] = []
        for binding in self._bindings:
            policy = self._compiled.get(binding.spec.policy_name)
            if policy is None or not self._matches(policy.spec.match_constraints, attributes, required=True):
                continue
            if self._matches(binding.spec.match_resources or MatchResources(), attributes, required=False):
                self._evaluate(policy, binding, attributes)
                if policy.spec.reinvocation_policy == "IfNeeded":
                    again.append((policy, binding, msgspec.json.encode(attributes.object)))
        for policy, binding, left in again:
            # Somebody changed the object after this policy saw it.
            if msgspec.json.encode(attributes.object) != left:
                self._evaluate(policy, binding, attributes)

    def _check(self, attributes: Attributes) -> None:
        resource, new = attributes.resource, attributes.object
        if new is None or attributes.subresource:
            return
        if resource.plural == self._plural:
            try:
                Compiled(msgspec.convert(new.get("spec") or {}, PolicySpec))
            except Uncompilable as error:
                raise status.invalid(resource.kind, resource.group, attributes.name, [error.cause]) from error

    def _load(self) -> None:
        self._compiled = {}
        for record in self._store.table(self._policies).objects.values():
            policy = msgspec.json.decode(record.value, type=_Policy)
            try:
                self._compiled[policy.metadata.name] = Compiled(policy.spec)
            except Uncompilable as error:
                # Accepted by an earlier version: every evaluation of it fails now, and its failurePolicy decides.
                broken = Compiled(PolicySpec())
                broken.spec, broken.problem = policy.spec, str(error)
                self._compiled[policy.metadata.name] = broken
        self._bindings = [
            msgspec.json.decode(record.value, type=_Binding)
            for record in self._store.table(self._policy_bindings).records(self._policy_bindings)
        ]

    # Which requests

    def _matches(self, match: MatchResources, attributes: Attributes, *, required: bool) -> bool:
        """`required`: no rules match nothing (a policy); otherwise they match everything (a binding)."""
        if any(_covers(rule, attributes, exact=False) for rule in match.exclude_resource_rules):
            return False
        exact = match.match_policy == "Exact"
        covered = any(_covers(rule, attributes, exact=exact) for rule in match.resource_rules)
        if not covered and (match.resource_rules or required):
            return False
        if match.namespace_selector is not None and not self._in_namespaces(match.namespace_selector, attributes):
            return False
        selector = match.object_selector
        return selector is None or any(
            selector.matches(each["metadata"].get("labels") or {})
            for each in (attributes.object, attributes.old)
            if each is not None
        )

    def _in_namespaces(self, selector: LabelSelector, attributes: Attributes) -> bool:
        namespace = self._namespace(attributes)
        return namespace is None or selector.matches(namespace["metadata"].get("labels") or {})

    def _namespace(self, attributes: Attributes) -> Json | None:
        """The namespace of the object, the object itself if it is one, None for other cluster-scoped objects."""
        if attributes.resource.plural == "namespaces" and not attributes.resource.group:
            return attributes.object or attributes.old
        if not attributes.namespace:
            return None
        record = self._store.get(f"//namespaces//{attributes.namespace}")
        return record.decode() if record is not None else {"metadata": {"name": attributes.namespace}}

    # What they must satisfy

    def _evaluate(self, policy: Compiled, binding: _Binding, attributes: Attributes) -> None:
        if policy.problem:
            self._failed(policy, binding, attributes, policy.problem, "Invalid")
            return
        inputs = _inputs(attributes) | {"namespaceObject": self._namespace(attributes)}
        for params in self._params(policy, binding, attributes):
            self._evaluate_once(policy, binding, attributes, inputs | {"params": params})

    def _evaluate_once(
        self, policy: Compiled, binding: _Binding, attributes: Attributes, inputs: dict[str, Any]
    ) -> None:
        try:
            if not all(program.evaluate(inputs) for _, program in policy.conditions):
                return
        except cel.CelError as error:
            self._failed(policy, binding, attributes, f"match condition error: {error}", "Invalid")
            return
        variables: dict[str, Any] = {}
        inputs["variables"] = variables
        for name, program in policy.variables:
            try:
                variables[name] = program.evaluate(inputs)
            except cel.CelError:
                continue  # it is an error where it is used: there it does not exist
        for validation, program, message in policy.validations:
            try:
                if program.evaluate(inputs):
                    continue
            except cel.CelError as error:
                text = f"expression '{validation.expression}' resulted in error: {error}"
                self._failed(policy, binding, attributes, text, "Invalid")
                continue
            self._act(binding, attributes, _message(validation, message, inputs), validation.reason)
        for mutation, program in zip(policy.spec.mutations, policy.mutations, strict=True):
            try:
                attributes.object = inputs["object"] = _mutated(attributes, mutation, program.evaluate(inputs))
            except (cel.CelError, fields.FieldsError, TypeError) as error:
                self._failed(policy, binding, attributes, f"mutation resulted in error: {error}", "Invalid")

    def _failed(self, policy: Compiled, binding: _Binding, attributes: Attributes, message: str, reason: str) -> None:
        """An expression that cannot be evaluated counts by the policy's `failurePolicy`."""
        if policy.spec.failure_policy != "Ignore":
            self._act(binding, attributes, message, reason)

    def _act(self, binding: _Binding, attributes: Attributes, message: str, reason: str) -> None:
        where = f"{self._kind} '{binding.spec.policy_name}' with binding '{binding.metadata.name}'"
        if "Warn" in binding.spec.validation_actions:
            attributes.warnings.append(f"Validation failed for {where}: {message}")
        if "Deny" in binding.spec.validation_actions:
            refusal = attributes.forbidden(f"{where} denied request: {message}")
            refusal.code = refusal.body["code"] = _CODES.get(reason, 422)
            refusal.reason = refusal.body["reason"] = reason
            refusal.body["details"]["causes"] = [{"message": message}]
            raise refusal

    def _params(self, policy: Compiled, binding: _Binding, attributes: Attributes) -> Iterator[Json | None]:
        """The parameter objects to evaluate with; one None for a policy without parameters."""
        kind, reference = policy.spec.param_kind, binding.spec.param_ref
        if kind is None:
            yield None
            return
        found = self._param_objects(kind, reference, attributes) if reference is not None else []
        yield from found
        if not found and (reference is None or reference.parameter_not_found_action != "Allow"):
            text = (
                "failed to configure binding: no params found for policy binding "
                f"with `{policy.spec.failure_policy}` failurePolicy"
            )
            self._failed(policy, binding, attributes, text, "Invalid")

    def _param_objects(self, kind: ParamKind, reference: ParamRef, attributes: Attributes) -> list[Json]:
        resource = next(
            (each for each in self._registry.types() if (each.api_version, each.kind) == (kind.api_version, kind.kind)),
            None,
        )
        if resource is None:
            return []
        namespace = (reference.namespace or attributes.namespace) if resource.namespaced else ""
        prefix = f"/{resource.storage}/{namespace}/"
        if reference.name:
            record = self._store.get(prefix + reference.name)
            return [resource.from_storage(record.decode())] if record is not None else []
        selector = reference.selector or LabelSelector()
        objects = (record.decode() for record in self._store.table(f"/{resource.storage}/").records(prefix))
        return [
            resource.from_storage(each) for each in objects if selector.matches(each["metadata"].get("labels") or {})
        ]


def _covers(rule: Rule, attributes: Attributes, *, exact: bool) -> bool:
    resource = attributes.resource
    path = f"{resource.plural}/{attributes.subresource}" if attributes.subresource else resource.plural
    return (
        any(each in ("*", attributes.operation) for each in rule.operations)
        and any(each in ("*", resource.group) for each in rule.api_groups)
        and (not exact or any(each in ("*", resource.version) for each in rule.api_versions))
        and any(_names(each, path) for each in rule.resources)
        and (not rule.resource_names or attributes.name in rule.resource_names)
        and rule.scope in ("*", "Namespaced" if resource.namespaced else "Cluster")
    )


def _names(pattern: str, path: str) -> bool:
    """`*` is every resource without subresources, `*/*` everything, `pods/*` and `*/scale` the obvious."""
    plural, _, subresource = pattern.partition("/")
    found, _, below = path.partition("/")
    return plural in ("*", found) and (subresource == below or (subresource == "*" and pattern != "*"))


def _inputs(attributes: Attributes) -> dict[str, Any]:
    resource = attributes.resource
    kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    named = {"group": resource.group, "version": resource.version, "resource": resource.plural}
    user = attributes.user
    return {
        "object": attributes.object,
        "oldObject": attributes.old,
        "request": {
            "kind": kind,
            "resource": named,
            "subResource": attributes.subresource,
            "requestKind": kind,
            "requestResource": named,
            "requestSubResource": attributes.subresource,
            "name": attributes.name,
            "namespace": attributes.namespace,
            "operation": attributes.operation,
            "userInfo": {
                "username": user.name,
                "uid": user.uid,
                "groups": list(user.groups),
                "extra": {name: list(values) for name, values in user.extra},
            },
            "dryRun": attributes.dry_run,
            "options": {},
        },
    }


def _mutated(attributes: Attributes, mutation: Mutation, value: Any) -> Json:
    """The object with a patch or an apply configuration merged in. Raises FieldsError, TypeError for odd values."""
    plain = msgspec.json.decode(msgspec.json.encode(value))
    if mutation.patch_type == "JSONPatch":
        changed = fields.json_patch(attributes.object, plain)
    else:
        assert attributes.object is not None
        changed = merge(attributes.object, plain, attributes.resource.merge_schema)
    if not isinstance(changed, dict) or not isinstance(changed.get("metadata"), dict):
        raise TypeError("the object has no metadata after it")
    return changed


def _message(validation: Validation, program: cel.Program | None, inputs: Mapping[str, Any]) -> str:
    """The message expression if it gives one line of text, else the message, else the expression."""
    if program is not None:
        try:
            text = program.evaluate(inputs)
        except cel.CelError:
            text = ""
        if isinstance(text, str) and text.strip() and "\n" not in text:
            return text.strip()
    return validation.message.strip() or f"failed expression: {validation.expression.strip()}"
