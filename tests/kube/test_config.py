"""Kubeconfigs: what kubectl reads, read the same way, and errors that say what to do."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from capstan import kube


def write(path: Path, **changes: Any) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    path.write_text(yaml.safe_dump(document | changes))
    return path


def test_the_current_context_names_server_user_and_namespace(tmp_path: Path) -> None:
    connection = kube.kubeconfig(write(tmp_path / "config"))
    assert (connection.server, connection.token, connection.namespace) == ("https://127.0.0.1:6443", "secret", "team")


def test_data_wins_over_files_and_files_are_relative_to_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(b"from file")
    cluster = {"server": "https://x", "certificate-authority": "ca.crt"}
    path = write(tmp_path / "config", clusters=[{"name": "c", "cluster": cluster}])
    assert kube.kubeconfig(path).ca == b"from file"
    cluster["certificate-authority-data"] = base64.b64encode(b"inline").decode()
    assert kube.kubeconfig(write(path, clusters=[{"name": "c", "cluster": cluster}])).ca == b"inline"


def test_of_several_files_the_first_that_names_an_entry_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "first", users=[{"name": "u", "user": {"token": "first"}}], clusters=[])
    second = write(tmp_path / "second", users=[{"name": "u", "user": {"token": "second"}}])
    monkeypatch.setenv("KUBECONFIG", f"{first}:{second}:{tmp_path / 'absent'}")
    connection = kube.kubeconfig()
    assert (connection.token, connection.server) == ("first", "https://127.0.0.1:6443")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"current-context": ""}, "no current-context; pass a context"),
        ({"current-context": "there"}, "no context 'there'; it has: here"),
        ({"clusters": []}, "no cluster 'c'; it has: none"),
        ({"clusters": [{"name": "c", "cluster": {}}]}, "cluster 'c' .* has no server"),
        ({"users": [{"name": "u", "user": {"exec": {"command": "aws"}}}]}, "exec credential plugins are not supported"),
        ({"users": [{"name": "u", "user": {"username": "me", "password": "x"}}]}, "basic authentication"),
        ({"users": [{"name": "u", "user": {"client-key-data": "%%%"}}]}, "client-key cannot be read"),
        ({"users": [{"name": "u", "user": {"client-certificate": "absent.crt"}}]}, "client-certificate cannot be read"),
        ({"contexts": 3}, "is not a kubeconfig"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(kube.ConfigError, match=message):
        kube.kubeconfig(write(tmp_path / "config", **changes))


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(kube.ConfigError, match=r"no kubeconfig at .*absent"):
        kube.kubeconfig(tmp_path / "absent")


def test_bad_certificates_are_a_config_error(tmp_path: Path) -> None:
    cluster = {"server": "https://x", "certificate-authority-data": base64.b64encode(b"no PEM").decode()}
    with pytest.raises(kube.ConfigError, match="certificates for https://x cannot be used"):
        kube.from_kubeconfig(write(tmp_path / "config", clusters=[{"name": "c", "cluster": cluster}]))


def test_outside_a_pod_there_is_no_service_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(kube.ConfigError, match="does not run in a pod"):
        kube.in_cluster()
