"""PURE. A platform as files: layers, variants by cluster facts, compile, plan, drift.

The way through: `Library` reads documents, `compile` makes frozen manifests and a digest of layers and facts, `plan`
says what applying them does to a cluster, `drift` what is no longer as it was applied, `explain` which layer set a
value.
"""

from capstan.blueprints.applyset import cluster_set, group_kinds, parent_metadata, stamped
from capstan.blueprints.compile import Compiled, Item, compile, digest, layers_of, lint, published
from capstan.blueprints.components import COMPONENTS
from capstan.blueprints.documents import Layer, Library, Source, attachments, identity
from capstan.blueprints.drift import Finding, drift
from capstan.blueprints.errors import BlueprintError, Problem
from capstan.blueprints.facts import SLICES, DeviceFacts, Facts, devices, observe
from capstan.blueprints.paths import parse as parse_path
from capstan.blueprints.plan import MANAGER, Change, NothingLeft, Plan, plan
from capstan.blueprints.resolve import PRECEDENCE, Override, Resolved, Setting, explain

__all__ = [
    "COMPONENTS",
    "MANAGER",
    "PRECEDENCE",
    "SLICES",
    "BlueprintError",
    "Change",
    "Compiled",
    "DeviceFacts",
    "Facts",
    "Finding",
    "Item",
    "Layer",
    "Library",
    "NothingLeft",
    "Override",
    "Plan",
    "Problem",
    "Resolved",
    "Setting",
    "Source",
    "attachments",
    "cluster_set",
    "compile",
    "devices",
    "digest",
    "drift",
    "explain",
    "group_kinds",
    "identity",
    "layers_of",
    "lint",
    "observe",
    "parent_metadata",
    "parse_path",
    "plan",
    "published",
    "stamped",
]
