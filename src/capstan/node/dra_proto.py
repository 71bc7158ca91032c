"""The kubelet plugin contract as message classes, service handlers and client stubs, without generated code.

Built at import from the committed descriptor set `proto/kubelet.binpb` (a test regenerates it from the .proto files).
`plugin` uses the handlers; whoever plays the kubelet (node agents, tests) uses the stubs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib.resources import files
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

_POOL = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    (files("capstan.node") / "proto/kubelet.binpb").read_bytes()
).file:
    _POOL.Add(_file)

_DRA = "k8s.io.kubelet.pkg.apis.dra"
REGISTRATION = "pluginregistration.Registration"
HEALTH_STATUS = {"Unknown": 0, "Healthy": 1, "Unhealthy": 2}

Handler = Callable[[Any, Any], Any]


def _message(name: str) -> type[Message]:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))


class DraApi:
    """The messages of one version of the DRA service, by their short names."""

    def __init__(self, version: str) -> None:
        self.version = version
        """As it is announced at registration without its suffix: `v1` or `v1beta1`."""
        package = f"{_DRA}.{version}"
        self.service = f"{package}.DRAPlugin"
        self.has_share_id = version == "v1"
        self.Claim: Any = _message(f"{package}.Claim")
        self.Device: Any = _message(f"{package}.Device")
        self.PrepareRequest: Any = _message(f"{package}.NodePrepareResourcesRequest")
        self.PrepareResponse: Any = _message(f"{package}.NodePrepareResourcesResponse")
        self.PreparedClaim: Any = _message(f"{package}.NodePrepareResourceResponse")
        self.UnprepareRequest: Any = _message(f"{package}.NodeUnprepareResourcesRequest")
        self.UnprepareResponse: Any = _message(f"{package}.NodeUnprepareResourcesResponse")
        self.UnpreparedClaim: Any = _message(f"{package}.NodeUnprepareResourceResponse")


class HealthApi:
    """The messages of one version of the health service."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.service = f"{version}.DRAResourceHealth"
        self.WatchRequest: Any = _message(f"{version}.NodeWatchResourcesRequest")
        self.WatchResponse: Any = _message(f"{version}.NodeWatchResourcesResponse")
        self.DeviceHealth: Any = _message(f"{version}.DeviceHealth")


DRA_VERSIONS = (DraApi("v1"), DraApi("v1beta1"))
HEALTH_VERSIONS = (HealthApi("v1"), HealthApi("v1alpha1"))
PluginInfo: Any = _message("pluginregistration.PluginInfo")
InfoRequest: Any = _message("pluginregistration.InfoRequest")
RegistrationStatus: Any = _message("pluginregistration.RegistrationStatus")
RegistrationStatusResponse: Any = _message("pluginregistration.RegistrationStatusResponse")


def _service(name: str) -> ServiceDescriptor:
    return _POOL.FindServiceByName(name)


def _classes(method: MethodDescriptor) -> tuple[type[Message], type[Message]]:
    return (
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )


def handler(service: str, methods: Mapping[str, Handler]) -> Any:
    """A generic handler for a grpc.aio server. Streaming methods are async generators. Every method must be given."""
    handlers = {}
    for method in _service(service).methods:
        request, response = _classes(method)
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        handlers[method.name] = make(
            methods[method.name],
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )
    return grpc.method_handlers_generic_handler(service, handlers)


class Stub:
    """A client of one service: `stub.call("GetInfo", request, timeout=5)`, or `stream` for a server stream."""

    def __init__(self, channel: grpc.aio.Channel, service: str) -> None:
        self._calls: dict[str, Any] = {}
        for method in _service(service).methods:
            request, response = _classes(method)
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            self._calls[method.name] = make(
                f"/{service}/{method.name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )

    def call(self, method: str, request: Any, timeout: float) -> Awaitable[Any]:
        """Awaits to the response message. Raises grpc.aio.AioRpcError."""
        call: Awaitable[Any] = self._calls[method](request, timeout=timeout)
        return call

    def stream(self, method: str, request: Any) -> Any:
        """An async iterator of response messages that ends when it is cancelled or the server goes."""
        return self._calls[method](request)


def channel(socket_path: str) -> grpc.aio.Channel:
    """A channel to a unix socket. The authority is plain, as servers in other languages refuse an escaped path."""
    return grpc.aio.insecure_channel(f"unix:{socket_path}", options=[("grpc.default_authority", "localhost")])
