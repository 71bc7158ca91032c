"""RFC 3339 timestamps of the Kubernetes API to POSIX seconds and back. No clock is read here."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(4096)
def parse(timestamp: str | None) -> float:
    """POSIX seconds of an RFC 3339 timestamp; 0.0 for an absent one. Raises ValueError when it is malformed."""
    if not timestamp:
        return 0.0
    moment = datetime.fromisoformat(timestamp)
    if moment.tzinfo is None:
        raise ValueError(f"{timestamp!r} has no time zone; write for example 2026-05-01T12:00:00Z")
    return moment.timestamp()


def render(seconds: float) -> str:
    """`metav1.Time`: RFC 3339 in UTC with seconds precision."""
    return _render(int(seconds))


@lru_cache(256)
def _render(seconds: int) -> str:
    """Most of what is rendered is the present second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def render_micro(seconds: float) -> str:
    """`metav1.MicroTime`: RFC 3339 in UTC with six fractional digits (Lease, Event series)."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
