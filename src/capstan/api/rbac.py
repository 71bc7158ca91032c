"""`rbac.authorization.k8s.io/v1`: what the embedded API server authorizes by."""

from __future__ import annotations

import msgspec

from capstan.api.base import Object, Struct


class PolicyRule(Struct):
    api_groups: list[str] = []
    resources: list[str] = []
    resource_names: list[str] = []
    verbs: list[str] = []
    non_resource_urls: list[str] = msgspec.field(default_factory=list, name="nonResourceURLs")


class ClusterRole(Object):
    rules: list[PolicyRule] = []


class Role(Object):
    rules: list[PolicyRule] = []


class Subject(Struct):
    kind: str = ""
    api_group: str = ""
    name: str = ""
    namespace: str = ""


class RoleRef(Struct):
    api_group: str = ""
    kind: str = ""
    name: str = ""


class ClusterRoleBinding(Object):
    subjects: list[Subject] = []
    role_ref: RoleRef = msgspec.field(default_factory=RoleRef)


class RoleBinding(Object):
    subjects: list[Subject] = []
    role_ref: RoleRef = msgspec.field(default_factory=RoleRef)
