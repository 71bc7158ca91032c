"""Where the API server is and who we are: kubeconfig files and the service account of a pod."""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstan.api import manifests
from capstan.kube.errors import ConfigError
from capstan.kube.transport import Token

if TYPE_CHECKING:
    from capstan.kube.http import HttpTransport

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_UNSUPPORTED = {
    "exec": "exec credential plugins are not supported",
    "auth-provider": "auth-provider plugins are not supported",
    "username": "basic authentication is not supported",
}


@dataclass(frozen=True)
class Connection:
    """All that is needed to talk to one cluster as one user. `namespace` is the default one of the context."""

    server: str
    namespace: str = "default"
    token: str = ""
    token_file: Path | None = None
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    insecure: bool = False
    server_hostname: str | None = None

    def transport(self) -> HttpTransport:
        from capstan.kube.http import HttpTransport  # 0.15 s and 11 MB that an embedded platform does without

        return HttpTransport(
            self.server,
            token=Token(self.token, self.token_file),
            tls=self._tls() if self.server.startswith("https:") else None,
            server_hostname=self.server_hostname,
        )

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)
            if self.insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.certificate:
                # ssl reads a key only from a file; it lives, readable by us alone, for this one call.
                with tempfile.NamedTemporaryFile(prefix="capstan-") as pair:
                    pair.write(self.certificate + b"\n" + self.key)
                    pair.flush()
                    context.load_cert_chain(pair.name)
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"the certificates for {self.server} cannot be used: {error}",
                "check certificate-authority, client-certificate and client-key of the kubeconfig",
            ) from error
        return context


def kubeconfig(path: Path | str | None = None, context: str | None = None) -> Connection:
    """The connection of a context (default: the current one).

    Without a path the files of $KUBECONFIG count, the first that names an entry wins, else ~/.kube/config.
    Raises ConfigError.
    """
    files = [Path(path)] if path else _default_files()
    merged = _merge(files)
    names = ", ".join(str(file) for file in files)
    wanted = context or merged["current-context"]
    if not wanted:
        raise ConfigError(f"{names} has no current-context", "pass a context or run `kubectl config use-context NAME`")
    chosen = _entry(merged, "contexts", wanted, "context", names)
    cluster = _entry(merged, "clusters", chosen.get("cluster", ""), "cluster", names)
    user = _entry(merged, "users", chosen["user"], "user", names) if chosen.get("user") else {}
    for field, problem in _UNSUPPORTED.items():
        if user.get(field):
            raise ConfigError(
                f"user {chosen['user']!r} in {names}: {problem}",
                "create a service account token (`kubectl create token`) and put it into a kubeconfig as `token`",
            )
    if cluster.get("proxy-url"):
        raise ConfigError(f"cluster {chosen['cluster']!r} in {names}: proxy-url is not supported", "connect directly")
    if not cluster.get("server"):
        raise ConfigError(f"cluster {chosen['cluster']!r} in {names} has no server", "set clusters[].cluster.server")
    return Connection(
        server=cluster["server"],
        namespace=chosen.get("namespace") or "default",
        token=user.get("token", ""),
        token_file=_path(user["tokenFile"], user) if user.get("tokenFile") else None,
        ca=_data(cluster, "certificate-authority"),
        certificate=_data(user, "client-certificate"),
        key=_data(user, "client-key"),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        server_hostname=cluster.get("tls-server-name"),
    )


def from_kubeconfig(path: Path | str | None = None, context: str | None = None) -> HttpTransport:
    """A transport for a context of a kubeconfig. Raises ConfigError."""
    return kubeconfig(path, context).transport()


def in_cluster() -> HttpTransport:
    """A transport for the pod this process runs in. Raises ConfigError outside a pod."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    token, ca, namespace = (_SERVICE_ACCOUNT / name for name in ("token", "ca.crt", "namespace"))
    if not host or not port or not token.exists():
        raise ConfigError("this process does not run in a pod with a service account", "pass a kubeconfig")
    return Connection(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        namespace=namespace.read_text().strip() if namespace.exists() else "default",
        token_file=token,
        ca=ca.read_bytes(),
    ).transport()


def _default_files() -> list[Path]:
    listed = [Path(part) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return listed or [Path.home() / ".kube" / "config"]


def _merge(files: Sequence[Path]) -> dict[str, Any]:
    """All entries by section and name. Relative file names inside an entry are relative to the file it came from."""
    merged: dict[str, Any] = {"current-context": "", "contexts": {}, "clusters": {}, "users": {}}
    found = [file for file in files if file.exists()]
    if not found:
        raise ConfigError(
            f"there is no kubeconfig at {', '.join(map(str, files))}", "set KUBECONFIG or start one with `capstan up`"
        )
    for file in found:
        try:
            documents = manifests.load_all(file.read_bytes(), str(file))
            document = documents[0] if documents else {}
            merged["current-context"] = merged["current-context"] or document.get("current-context", "")
            for section in ("contexts", "clusters", "users"):
                for entry in document.get(section) or []:
                    content = {**(entry.get(section.removesuffix("s")) or {}), "_directory": file.parent}
                    merged[section].setdefault(entry["name"], content)
        except (manifests.InvalidManifest, AttributeError, KeyError, TypeError, OSError) as error:
            raise ConfigError(
                f"{file} is not a kubeconfig: {error}", "compare it with `kubectl config view`"
            ) from error
    return merged


def _entry(merged: dict[str, Any], section: str, name: str, noun: str, files: str) -> dict[str, Any]:
    found: dict[str, Any] | None = merged[section].get(name)
    if found is None:
        known = ", ".join(sorted(merged[section])) or "none"
        raise ConfigError(f"{files} has no {noun} {name!r}", f"it has: {known}")
    return found


def _path(name: str, entry: dict[str, Any]) -> Path:
    """A file named by an entry: relative names start at the kubeconfig's own directory."""
    directory: Path = entry["_directory"]
    return directory / name


def _data(entry: dict[str, Any], field: str) -> bytes:
    """`field-data` (base64) wins over the file named by `field`; neither is empty."""
    try:
        if inline := entry.get(f"{field}-data"):
            return base64.b64decode(inline, validate=True)
        return _path(entry[field], entry).read_bytes() if entry.get(field) else b""
    except (binascii.Error, OSError) as error:
        raise ConfigError(f"{field} cannot be read: {error}", "check the kubeconfig") from error
