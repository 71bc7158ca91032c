"""Each component's ServiceAccount, with the rights that its class lists in `RULES` and no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from capstan.api.rbac import PolicyRule

NAMESPACE = "capstan-system"


def manifests_for(
    component: str, rules: Sequence[PolicyRule], own_rules: Sequence[PolicyRule] = ()
) -> list[dict[str, Any]]:
    """ServiceAccount, ClusterRole and binding of a component; Role and binding for what it may do in NAMESPACE only."""
    role = f"capstan:{component}"
    own = {"name": role, "namespace": NAMESPACE}
    subjects = [{"kind": "ServiceAccount", "name": component, "namespace": NAMESPACE}]
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": component, "namespace": NAMESPACE},
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": role},
            "rules": [msgspec.to_builtins(rule) for rule in rules],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": subjects,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": own,
            "rules": [msgspec.to_builtins(rule) for rule in own_rules],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": own,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
            "subjects": subjects,
        },
    ]
