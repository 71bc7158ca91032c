"""The embedded control plane: store, API server, workload controllers and node agents in one process.

It speaks the Kubernetes API so that kubectl and every controller work against it as against a cluster. What it does
not implement answers with a Status error. `Server` is the API server, `serving` puts it on a socket,
`Server.transport` lets components in the same process talk to it without one.
"""

from capstan.local.admission import Attributes
from capstan.local.asgi import serve, serving
from capstan.local.inprocess import InProcessTransport
from capstan.local.request import ADMIN, User, service_account
from capstan.local.server import Server
from capstan.local.store import DataDirectoryInUse, Store, StoreError

__all__ = [
    "ADMIN",
    "Attributes",
    "DataDirectoryInUse",
    "InProcessTransport",
    "Server",
    "Store",
    "StoreError",
    "User",
    "serve",
    "service_account",
    "serving",
]
