"""Assembles the house in one process: `Platform` is what `capstan up` starts, `demo` what `capstan demo` tells."""

from capstan.embedded.platform import Platform, PlatformError

__all__ = ["Platform", "PlatformError"]
