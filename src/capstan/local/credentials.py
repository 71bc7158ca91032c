"""The files that let somebody in: a CA of our own, the server's certificate, the signing key of tokens, the kubeconfig.

Made once per data directory and kept: a kubeconfig written before a restart works after it. Secrets have mode 0600.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from capstan.api import manifests

_LIFETIME = datetime.timedelta(days=3650)
_RENEW_BEFORE = datetime.timedelta(days=30)
_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Paths of PEM files for the server's TLS, and the secrets themselves."""

    ca: Path
    certificate: Path
    key: Path
    admin_token: str
    signing_key: bytes


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, replacing it in one step."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def ensure(directory: Path) -> Credentials:
    """The credentials in `directory`, made where they are missing."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    token, signing = directory / "admin.token", directory / "signing.key"
    if not token.exists():
        write_secret(token, secrets.token_urlsafe(32).encode())
    if not signing.exists():
        write_secret(signing, secrets.token_bytes(32))
    ca, certificate, key = directory / "ca.crt", directory / "server.crt", directory / "server.key"
    if not all(path.exists() for path in (ca, certificate, key)) or _expires_soon(certificate):
        _make_certificates(ca, certificate, key)
    return Credentials(ca, certificate, key, token.read_text(), signing.read_bytes())


def _expires_soon(certificate: Path) -> bool:
    expiry = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return expiry - datetime.datetime.now(datetime.UTC) < _RENEW_BEFORE


def _make_certificates(ca: Path, certificate: Path, key: Path) -> None:
    """The CA's key is not kept: nothing else is ever signed with it."""
    ca_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "capstan-ca")])
    addresses = [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")]
    authority = (
        _certificate(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "capstan-apiserver")])
    server = (
        _certificate(server_name, ca_name, server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([*map(x509.DNSName, _NAMES), *addresses]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    write_secret(
        key,
        server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    certificate.write_bytes(server.public_bytes(pem))
    ca.write_bytes(authority.public_bytes(pem))


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def write_kubeconfig(path: Path, server: str, credentials: Credentials, *, name: str = "capstan") -> None:
    """A kubeconfig of its own (mode 0600) with one context, for the admin."""
    authority = base64.b64encode(credentials.ca.read_bytes()).decode()
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [{"name": f"{name}-admin", "user": {"token": credentials.admin_token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": f"{name}-admin", "namespace": "default"}}],
        "current-context": name,
    }
    write_secret(path, manifests.dump(document).encode())
