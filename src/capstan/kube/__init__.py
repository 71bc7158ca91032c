"""Talking to a cluster: client, watch caches, controllers' work queues, events, leader election.

One `Client` over one `Transport`: HTTP(S) (`kube.http`), or straight into the embedded API server.
"""

from capstan.api.base import Status
from capstan.kube.cache import Cache, Change, Index, Key, identity
from capstan.kube.client import Body, Client, Listing, WatchEvent, Written, decode
from capstan.kube.config import Connection, from_kubeconfig, in_cluster, kubeconfig
from capstan.kube.controller import Controller, WorkQueue
from capstan.kube.discovery import Discovery, Unstructured
from capstan.kube.errors import (
    AlreadyExists,
    ApiError,
    BadRequest,
    ConfigError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    NotLeading,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Undecodable,
    UnknownKind,
    UnknownResource,
    from_response,
    from_status,
    severity,
    unreachable,
)
from capstan.kube.events import EventRecorder, reference
from capstan.kube.leases import LeaderElector
from capstan.kube.owners import owned
from capstan.kube.transport import Document, Response, Token, Transport

__all__ = [
    "AlreadyExists",
    "ApiError",
    "BadRequest",
    "Body",
    "Cache",
    "Change",
    "Client",
    "ConfigError",
    "Conflict",
    "Connection",
    "Controller",
    "Discovery",
    "Document",
    "EventRecorder",
    "Forbidden",
    "Gone",
    "Index",
    "Invalid",
    "Key",
    "LeaderElector",
    "Listing",
    "NotFound",
    "NotLeading",
    "Response",
    "Status",
    "Token",
    "TooManyRequests",
    "Transport",
    "Unauthorized",
    "Unavailable",
    "Undecodable",
    "UnknownKind",
    "UnknownResource",
    "Unstructured",
    "WatchEvent",
    "WorkQueue",
    "Written",
    "decode",
    "from_kubeconfig",
    "from_response",
    "from_status",
    "identity",
    "in_cluster",
    "kubeconfig",
    "owned",
    "reference",
    "severity",
    "unreachable",
]
