"""Authentication: bearer tokens to users. Static tokens (the kubeconfig's), and signed tokens of service accounts.

Service-account tokens are JWTs signed with HMAC-SHA256 by a key in the data directory; they end with the account that
they name, because the account's uid is checked at each use.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence

import msgspec

from capstan.local.request import User, service_account
from capstan.local.store import Store

ISSUER = "https://kubernetes.default.svc.cluster.local"
_HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")


class _Named(msgspec.Struct):
    name: str = ""
    uid: str = ""


class _Kubernetes(msgspec.Struct):
    namespace: str
    serviceaccount: _Named
    pod: _Named | None = None


class _Claims(msgspec.Struct):
    iss: str
    sub: str
    aud: list[str]
    iat: int
    exp: int
    kubernetes: _Kubernetes = msgspec.field(name="kubernetes.io")


class _Metadata(msgspec.Struct):
    uid: str = ""


class _Account(msgspec.Struct):
    metadata: _Metadata


class Authenticator:
    """`key` signs the tokens; `now` gives POSIX seconds."""

    def __init__(self, store: Store, key: bytes, now: Callable[[], float]) -> None:
        self._store = store
        self._key = key
        self._now = now
        self._static: dict[str, User] = {}
        self._verified: dict[str, _Claims] = {}

    def add_static(self, token: str, user: User) -> None:
        self._static[token] = user

    def issue(
        self, namespace: str, name: str, uid: str, *, audiences: Sequence[str] = (), lifetime: int = 3600
    ) -> tuple[str, int]:
        """A token for a ServiceAccount and its expiry in POSIX seconds; `lifetime` in seconds."""
        issued = int(self._now())
        claims = _Claims(
            iss=ISSUER,
            sub=f"system:serviceaccount:{namespace}:{name}",
            aud=list(audiences) or [ISSUER],
            iat=issued,
            exp=issued + lifetime,
            kubernetes=_Kubernetes(namespace, _Named(name, uid)),
        )
        signed = _HEADER + b"." + base64.urlsafe_b64encode(msgspec.json.encode(claims)).rstrip(b"=")
        return (signed + b"." + self._signature(signed)).decode(), claims.exp

    def authenticate(self, token: str, audiences: Sequence[str] = ()) -> User | None:
        """The user of a bearer token; None when it is unknown, expired, for others, or its account is gone."""
        user = self._static.get(token)
        if user is not None:
            return user
        claims = self._verified.get(token) or self._verify(token)
        if claims is None or claims.exp <= self._now() or not set(claims.aud) & set(audiences or [ISSUER]):
            self._verified.pop(token, None)
            return None
        account = claims.kubernetes.serviceaccount
        record = self._store.get(f"//serviceaccounts/{claims.kubernetes.namespace}/{account.name}")
        if record is None or msgspec.json.decode(record.value, type=_Account).metadata.uid != account.uid:
            return None
        if len(self._verified) >= 10_000:
            self._verified.clear()
        self._verified[token] = claims
        return service_account(claims.kubernetes.namespace, account.name, account.uid)

    def _signature(self, signed: bytes) -> bytes:
        return base64.urlsafe_b64encode(hmac.new(self._key, signed, hashlib.sha256).digest()).rstrip(b"=")

    def _verify(self, token: str) -> _Claims | None:
        signed, _, signature = token.encode().rpartition(b".")
        if not hmac.compare_digest(signature, self._signature(signed)) or not signed.startswith(_HEADER + b"."):
            return None
        payload = signed[len(_HEADER) + 1 :]
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)), type=_Claims)
        except (msgspec.MsgspecError, binascii.Error):
            return None
