"""Authorization: who may do what, by the RBAC objects in the store. Rules are purely additive
(`rbac.authorization.k8s.io`).

The index of bindings is rebuilt when an RBAC object changed; decisions are remembered until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from capstan.api.rbac import ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject
from capstan.local.admission import Attributes
from capstan.local.request import User
from capstan.local.store import Event, Record, Store

GROUP = "rbac.authorization.k8s.io"
_SUPERUSERS = "system:masters"
_cluster_roles = msgspec.json.Decoder(ClusterRole)
_roles = msgspec.json.Decoder(Role)
_cluster_role_bindings = msgspec.json.Decoder(ClusterRoleBinding)
_role_bindings = msgspec.json.Decoder(RoleBinding)
_REMEMBERED = 50_000

SubjectKey = tuple[str, str]
"""("User" or "Group", name); a ServiceAccount is the user of its token."""


class Action(msgspec.Struct, frozen=True):
    """What somebody wants to do. `path` is set for non-resource URLs only."""

    verb: str
    group: str = ""
    plural: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def resource(self) -> str:
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural


def _listed(item: str, items: Iterable[str]) -> bool:
    return any(entry in ("*", item) for entry in items)


def _covers_resource(rule: PolicyRule, plural: str, subresource: str) -> bool:
    wanted = f"{plural}/{subresource}" if subresource else plural
    return any(
        entry in ("*", wanted) or (subresource != "" and entry == f"*/{subresource}") for entry in rule.resources
    )


def allows(rule: PolicyRule, action: Action) -> bool:
    """Whether one rule permits the action."""
    if not _listed(action.verb, rule.verbs):
        return False
    if action.path:
        return any(
            url in ("*", action.path) or (url.endswith("*") and action.path.startswith(url[:-1]))
            for url in rule.non_resource_urls
        )
    return (
        _listed(action.group, rule.api_groups)
        and _covers_resource(rule, action.plural, action.subresource)
        and (not rule.resource_names or action.name in rule.resource_names)
    )


def _atoms(rule: PolicyRule) -> Iterator[PolicyRule]:
    """The rule as single permissions, for the escalation check."""
    for verb in rule.verbs:
        for url in rule.non_resource_urls:
            yield PolicyRule(verbs=[verb], non_resource_urls=[url])
        for group in rule.api_groups:
            for resource in rule.resources:
                for name in rule.resource_names or [""]:
                    names = [name] if name else []
                    yield PolicyRule(verbs=[verb], api_groups=[group], resources=[resource], resource_names=names)


def _covers(owned: PolicyRule, atom: PolicyRule) -> bool:
    if not _listed(atom.verbs[0], owned.verbs):
        return False
    if atom.non_resource_urls:
        url = atom.non_resource_urls[0]
        return any(
            own in ("*", url) or (own.endswith("*") and url.startswith(own[:-1])) for own in owned.non_resource_urls
        )
    plural, _, subresource = atom.resources[0].partition("/")
    return (
        _listed(atom.api_groups[0], owned.api_groups)
        and _covers_resource(owned, plural, subresource)
        and (not owned.resource_names or bool(atom.resource_names and atom.resource_names[0] in owned.resource_names))
    )


def missing(owned: list[PolicyRule], wanted: list[PolicyRule]) -> list[PolicyRule]:
    """The single permissions of `wanted` that `owned` does not contain: what a grant would escalate by."""
    return [atom for rule in wanted for atom in _atoms(rule) if not any(_covers(own, atom) for own in owned)]


def describe(rule: PolicyRule) -> str:
    """A rule as upstream prints it in escalation errors."""
    parts = {
        "APIGroups": rule.api_groups,
        "Resources": rule.resources,
        "ResourceNames": rule.resource_names,
        "NonResourceURLs": rule.non_resource_urls,
        "Verbs": rule.verbs,
    }
    quoted = (
        f"{name}:[{' '.join(chr(34) + value + chr(34) for value in values)}]"
        for name, values in parts.items()
        if values
    )
    return "{" + ", ".join(quoted) + "}"


class Authorizer:
    def __init__(self, store: Store) -> None:
        self._tables = {
            plural: store.table(f"/{GROUP}/{plural}/")
            for plural in ("clusterroles", "roles", "clusterrolebindings", "rolebindings")
        }
        for table in self._tables.values():
            table.listeners.append(self._changed)
        self._bindings: dict[SubjectKey, list[tuple[str, RoleRef]]] | None = None
        self._rules: dict[tuple[User, str], list[PolicyRule]] = {}
        self._decisions: dict[User, dict[tuple[str, ...], bool]] = {}
        """By user, then by (verb, group, resource, subresource, namespace, path)."""

    def _changed(self, _event: Event) -> None:
        self._bindings = None
        self._rules.clear()
        self._decisions.clear()

    def allowed(self, user: User, action: Action) -> bool:
        if _SUPERUSERS in user.groups:
            return True
        decisions = self._decisions.get(user)
        if decisions is None:
            decisions = self._decisions[user] = {}
        nameless = (action.verb, action.group, action.plural, action.subresource, action.namespace, action.path)
        decision = decisions.get(nameless)
        if decision is None:
            rules = self.rules(user, action.namespace)
            if any(rule.resource_names for rule in rules):
                # Then it may depend on the name, and there are too many names to remember.
                return any(allows(rule, action) for rule in rules)
            if len(decisions) >= _REMEMBERED:
                decisions.clear()
            decision = decisions[nameless] = any(allows(rule, action) for rule in rules)
        return decision

    def rules(self, user: User, namespace: str) -> list[PolicyRule]:
        """All rules that hold for the user in a namespace; empty namespace: cluster-wide only."""
        key = (user, namespace)
        found = self._rules.get(key)
        if found is None:
            if _SUPERUSERS in user.groups:
                everything = ["*"]
                found = [
                    PolicyRule(verbs=everything, api_groups=everything, resources=everything),
                    PolicyRule(verbs=everything, non_resource_urls=everything),
                ]
            else:
                subjects = [("User", user.name), *(("Group", group) for group in user.groups)]
                bindings = self._index()
                found = [
                    rule
                    for subject in subjects
                    for bound_in, role in bindings.get(subject, ())
                    if bound_in in ("", namespace)
                    for rule in self.role_rules(role, bound_in)
                ]
            self._rules[key] = found
        return found

    def role_rules(self, role: RoleRef, namespace: str) -> list[PolicyRule]:
        """The rules of a referenced role; none when it does not exist."""
        if role.kind == "Role":
            record = self._tables["roles"].objects.get(f"/{GROUP}/roles/{namespace}/{role.name}")
            return _roles.decode(record.value).rules if record else []
        record = self._tables["clusterroles"].objects.get(f"/{GROUP}/clusterroles//{role.name}")
        return _cluster_roles.decode(record.value).rules if record else []

    def admit(self, attributes: Attributes) -> None:
        """Nobody grants more than they hold, unless they may `escalate` the role or `bind` it."""
        resource, new = attributes.resource, attributes.object
        if resource.group != GROUP or new is None or _SUPERUSERS in attributes.user.groups:
            return
        user, namespace = attributes.user, attributes.namespace
        if resource.plural in ("roles", "clusterroles"):
            if attributes.old is not None and attributes.old.get("rules") == new.get("rules"):
                return
            wanted = msgspec.convert(new.get("rules") or [], list[PolicyRule])
            excused = Action("escalate", GROUP, resource.plural, "", namespace, attributes.name)
        else:
            role = msgspec.convert(new["roleRef"], RoleRef)
            plural = "roles" if role.kind == "Role" else "clusterroles"
            wanted = self.role_rules(role, namespace)
            excused = Action("bind", GROUP, plural, "", namespace, role.name)
        if self.allowed(user, excused):
            return
        lacking = missing(self.rules(user, namespace), wanted)
        if lacking:
            listing = "\n".join(sorted(describe(rule) for rule in lacking))
            groups = " ".join(f'"{group}"' for group in user.groups)
            raise attributes.forbidden(
                f'user "{user.name}" (groups=[{groups}]) is attempting to grant RBAC permissions '
                f"not currently held:\n{listing}"
            )

    def _index(self) -> dict[SubjectKey, list[tuple[str, RoleRef]]]:
        if self._bindings is None:
            index: dict[SubjectKey, list[tuple[str, RoleRef]]] = {}
            for record in self._tables["clusterrolebindings"].objects.values():
                binding = _cluster_role_bindings.decode(record.value)
                for subject in binding.subjects:
                    index.setdefault(_subject_key(subject, ""), []).append(("", binding.role_ref))
            for record in self._tables["rolebindings"].objects.values():
                self._index_role_binding(index, record)
            self._bindings = index
        return self._bindings

    @staticmethod
    def _index_role_binding(index: dict[SubjectKey, list[tuple[str, RoleRef]]], record: Record) -> None:
        binding = _role_bindings.decode(record.value)
        namespace = binding.metadata.namespace
        for subject in binding.subjects:
            index.setdefault(_subject_key(subject, namespace), []).append((namespace, binding.role_ref))


def _subject_key(subject: Subject, namespace: str) -> SubjectKey:
    if subject.kind == "ServiceAccount":
        return ("User", f"system:serviceaccount:{subject.namespace or namespace}:{subject.name}")
    return (subject.kind, subject.name)


def denial(user: User, action: Action) -> str:
    """The second half of a 403's message."""
    if action.path:
        return f'User "{user.name}" cannot {action.verb} path "{action.path}"'
    where = f'in the namespace "{action.namespace}"' if action.namespace else "at the cluster scope"
    return f'User "{user.name}" cannot {action.verb} resource "{action.resource}" in API group "{action.group}" {where}'
