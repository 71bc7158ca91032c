"""The committed descriptor set is what the committed .proto files say."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path

from google.protobuf import descriptor_pb2

from capstan.node import dra_proto

PROTO = files("capstan.node") / "proto"


def test_the_descriptor_set_is_regenerated_without_a_difference(tmp_path: Path) -> None:
    fresh = tmp_path / "kubelet.binpb"
    with as_file(PROTO) as directory:
        sources = sorted(path.name for path in directory.glob("*.proto"))
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{directory}",
            f"--descriptor_set_out={fresh}",
            *sources,
        ]
        subprocess.run(command, check=True)
    decode = descriptor_pb2.FileDescriptorSet.FromString
    assert decode(fresh.read_bytes()) == decode((PROTO / "kubelet.binpb").read_bytes())


def test_method_paths_are_those_the_kubelet_calls() -> None:
    assert dra_proto.REGISTRATION == "pluginregistration.Registration"
    assert [api.service for api in dra_proto.DRA_VERSIONS] == [
        "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin",
        "k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin",
    ]
    assert [api.service for api in dra_proto.HEALTH_VERSIONS] == ["v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"]


def test_only_v1_tells_shares_apart() -> None:
    v1, v1beta1 = dra_proto.DRA_VERSIONS
    assert v1.Device(share_id="s").share_id == "s"
    assert "share_id" not in v1beta1.Device.DESCRIPTOR.fields_by_name
