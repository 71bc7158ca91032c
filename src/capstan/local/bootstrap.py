"""What every cluster has from the start: system namespaces, the default RBAC policy, the two system priority classes.

Missing objects are made at each start; what a user changed stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.local.request import ADMIN, Request, Stream, encode
from capstan.local.status import Json

if TYPE_CHECKING:
    from capstan.local.server import Server

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]
_WRITE = ["create", "delete", "deletecollection", "patch", "update"]

_VIEWED: dict[str, list[str]] = {
    "": [
        "bindings",
        "configmaps",
        "endpoints",
        "events",
        "limitranges",
        "namespaces",
        "persistentvolumeclaims",
        "pods",
        "pods/log",
        "pods/status",
        "replicationcontrollers",
        "resourcequotas",
        "serviceaccounts",
        "services",
    ],
    "apps": ["controllerrevisions", "daemonsets", "deployments", "deployments/scale", "replicasets", "statefulsets"],
    "batch": ["cronjobs", "jobs"],
    "events.k8s.io": ["events"],
    "networking.k8s.io": ["ingresses", "networkpolicies"],
    "policy": ["poddisruptionbudgets"],
    "resource.k8s.io": ["resourceclaims", "resourceclaimtemplates"],
    "scheduling.k8s.io": ["podgroups", "workloads"],
    "scheduling.run.ai": ["podgroups", "bindrequests"],
}
_EDITED: dict[str, list[str]] = {
    "": [
        "configmaps",
        "events",
        "persistentvolumeclaims",
        "pods",
        "pods/eviction",
        "secrets",
        "serviceaccounts",
        "services",
    ],
    "apps": ["daemonsets", "deployments", "deployments/scale", "replicasets", "statefulsets", "statefulsets/scale"],
    "batch": ["cronjobs", "jobs"],
    "networking.k8s.io": ["ingresses", "networkpolicies"],
    "policy": ["poddisruptionbudgets"],
    "resource.k8s.io": ["resourceclaims", "resourceclaimtemplates"],
    "scheduling.k8s.io": ["podgroups", "workloads"],
    "scheduling.run.ai": ["podgroups"],
}


def _rule(verbs: list[str], group: str, resources: list[str]) -> Json:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _urls(*urls: str) -> Json:
    return {"nonResourceURLs": list(urls), "verbs": ["get"]}


_VIEW = [_rule(_READ, group, resources) for group, resources in _VIEWED.items()]
_EDIT = [
    *_VIEW,
    *(_rule(_WRITE, group, resources) for group, resources in _EDITED.items()),
    _rule(_READ, "", ["secrets"]),
    _rule(["create"], "", ["serviceaccounts/token"]),
]
_ADMIN = [
    *_EDIT,
    _rule(_READ + _WRITE, _RBAC, ["roles", "rolebindings"]),
    _rule(["create"], "authorization.k8s.io", ["localsubjectaccessreviews"]),
]
_DISCOVERY = _urls("/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/version", "/version/")
_SELF = [
    _rule(["create"], "authorization.k8s.io", ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]),
    _rule(["create"], "authentication.k8s.io", ["selfsubjectreviews"]),
]
CLUSTER_ROLES: dict[str, list[Json]] = {
    "cluster-admin": [_rule(["*"], "*", ["*"]), {"nonResourceURLs": ["*"], "verbs": ["*"]}],
    "admin": _ADMIN,
    "edit": _EDIT,
    "view": _VIEW,
    "system:discovery": [_DISCOVERY],
    "system:basic-user": _SELF,
    "system:public-info-viewer": [_urls("/healthz", "/livez", "/readyz", "/version", "/version/")],
    "system:monitoring": [_urls("/healthz", "/livez", "/readyz", "/metrics", "/metrics/slis")],
}
CLUSTER_ROLE_BINDINGS: dict[str, tuple[str, list[str]]] = {
    "cluster-admin": ("cluster-admin", ["system:masters"]),
    "system:discovery": ("system:discovery", ["system:authenticated"]),
    "system:monitoring": ("system:monitoring", ["system:monitoring"]),
    "system:basic-user": ("system:basic-user", ["system:authenticated"]),
    "system:public-info-viewer": (
        "system:public-info-viewer",
        ["system:authenticated", "system:unauthenticated"],
    ),
}
PRIORITY_CLASSES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}


def _documents() -> list[tuple[str, Json]]:
    """(collection path, object)"""
    marked = {"kubernetes.io/bootstrapping": "rbac-defaults"}
    found: list[tuple[str, Json]] = [("/api/v1/namespaces", {"metadata": {"name": name}}) for name in NAMESPACES]
    for name, rules in CLUSTER_ROLES.items():
        found.append((f"/apis/{_RBAC}/v1/clusterroles", {"metadata": {"name": name, "labels": marked}, "rules": rules}))
    for name, (role, groups) in CLUSTER_ROLE_BINDINGS.items():
        binding = {
            "metadata": {"name": name, "labels": marked},
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": _RBAC, "kind": "Group", "name": group} for group in groups],
        }
        found.append((f"/apis/{_RBAC}/v1/clusterrolebindings", binding))
    for name, value in PRIORITY_CLASSES.items():
        found.append(("/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": name}, "value": value}))
    return found


async def ensure(server: Server) -> None:
    """Make what is missing. Raises RuntimeError when the server refuses one of its own objects."""
    for path, document in _documents():
        request = Request("POST", path, {}, encode(document), {"user-agent": "kube-apiserver"}, ADMIN)
        answer = await server.handle(request)
        if isinstance(answer, Stream) or answer.code not in (201, 409):
            body = b"" if isinstance(answer, Stream) else answer.body
            raise RuntimeError(f"cannot make {path}/{document['metadata']['name']}: {body.decode(errors='replace')}")
