"""Simulated kubelets: nodes that run pods on virtual containers, and call DRA drivers over the real gRPC contract.

pod bound to a node ─> Fleet ─> NodeAgent ─> claims ─> plugins ─gRPC─> the node's driver ─> CDI specs
                                   └─> containers ─> process: what the command would do, on virtual time
"""

from capstan.local.agents.fleet import SIMULATED_LABEL, Fleet
from capstan.local.agents.node import AgentDirectories, NodeAgent

__all__ = ["SIMULATED_LABEL", "AgentDirectories", "Fleet", "NodeAgent"]
