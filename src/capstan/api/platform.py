"""`platform.capstan.dev/v1alpha1`: Capstan's own objects, what a platform team writes and reads about its clusters.

Free-form parts (layers, overrides, facts) are plain dicts here; `capstan.blueprints` gives them meaning.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from capstan.api.base import Condition, Object, Struct

GROUP = "platform.capstan.dev"
API_VERSION = f"{GROUP}/v1alpha1"
ADDON_LABEL = f"{GROUP}/addon"
"""On every object of a blueprint: the add-on it belongs to."""
PRUNE_ANNOTATION = f"{GROUP}/prune"
"""`"false"` protects an object from being deleted when its blueprint no longer contains it."""


class Blueprint(Object):
    """A draft: may change at any time and is never applied to a cluster itself."""

    spec: dict[str, Any] = {}


class BlueprintVersionSpec(Struct):
    """Immutable. `layers` holds the blueprint and everything it extends, in order of precedence, lowest first."""

    blueprint: str = ""
    version: str = ""
    digest: str = ""
    """`sha256:<hex>` of the canonical JSON of `layers`."""
    layers: list[dict[str, Any]] = []


class BlueprintVersion(Object):
    """Named `<blueprint>-<version>`."""

    spec: BlueprintVersionSpec = msgspec.field(default_factory=BlueprintVersionSpec)


class BlueprintReference(Struct):
    name: str = ""
    version: str = ""


class ClusterSpec(Struct):
    blueprint: BlueprintReference | None = None
    mode: Literal["enforce", "warn"] = "enforce"
    """`enforce` repairs drift at once, `warn` only reports it."""
    paused: bool = False
    labels: dict[str, str] = {}
    """Facts that nothing in the cluster tells, such as a region; variants select by `labels.<key>`."""
    override: dict[str, Any] = {}
    """The last layer: `values` and `addons` of this cluster alone."""


class Drift(Struct):
    """One field (or object) that is not as the blueprint says. `repaired` is empty while it lasts."""

    object: str = ""
    path: str = ""
    """Empty when the whole object is concerned."""
    kind: str = ""
    """changed, removed, taken (only the ownership was lost) or deleted."""
    manager: str = ""
    """Who did it, as far as managed fields tell."""
    expected: Any = None
    found: Any = None
    first_seen: str = ""
    repaired: str = ""


class AddonStatus(Struct):
    name: str = ""
    phase: str = ""
    """Ready, Progressing or Failed."""
    objects: int = 0
    ready: int = 0
    message: str = ""


class ClusterStatus(Struct):
    observed_generation: int = 0
    facts: dict[str, Any] = {}
    blueprint: str = ""
    version: str = ""
    digest: str = ""
    """Of the compiled manifests that were applied last without a failure."""
    variant: str = ""
    objects: int = 0
    addons: list[AddonStatus] = []
    conditions: list[Condition] = []
    drift: list[Drift] = []
    """Lasting drift first, then the most recent repairs."""


class Cluster(Object):
    """One cluster and its blueprint; the agent in the cluster writes the status."""

    spec: ClusterSpec = msgspec.field(default_factory=ClusterSpec)
    status: ClusterStatus = msgspec.field(default_factory=ClusterStatus)


class Rollout(Object):
    """A blueprint version on its way through a fleet, in waves."""

    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}


class Tenant(Object):
    """A namespace with its queue, quota, network policy and isolation level."""

    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}
