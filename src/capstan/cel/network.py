"""URLs, IP addresses and CIDR blocks, as the Kubernetes libraries define them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.values import register_type

URLS: Final = Library("url")
IPS: Final = Library("ip")
CIDRS: Final = Library("cidr")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class URL:
    text: str
    parts: SplitResult


@dataclass(frozen=True, slots=True)
class CIDR:
    """An address with a prefix length; host bits may be set, as in 192.168.1.7/24."""

    address: Address
    prefix: int

    @property
    def network(self) -> Network:
        return ipaddress.ip_network((self.address, self.prefix), strict=False)

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix}"


register_type("kubernetes.URL", URL)
register_type("net.CIDR", CIDR)


@dataclass(frozen=True, slots=True)
class IP:
    address: Address

    def __str__(self) -> str:
        return str(self.address)


register_type("net.IP", IP)

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")


@lru_cache(maxsize=1024)
def parse_url(text: str) -> URL | None:
    """An absolute URL or an absolute path (Go's url.ParseRequestURI); None for anything else."""
    if not (_SCHEME.match(text) or text.startswith("/")) or any(ord(each) < 33 or ord(each) == 127 for each in text):
        return None
    try:
        parts = urlsplit(text, allow_fragments=False)
        port = parts.netloc.rpartition("@")[2].rpartition("]")[2].partition(":")[2]
        host = parts.hostname
    except ValueError:
        return None
    if (port and not port.isdigit()) or _BAD_ESCAPE.search(parts.path):
        return None
    if parts.scheme and not parts.netloc and not parts.path.startswith("/"):
        return None
    return None if host is not None and any(each in host for each in ' <>"{}|\\^`') else URL(text, parts)


@URLS.declare("url(string) -> kubernetes.URL")
def url(text: str) -> URL:
    parsed = parse_url(text)
    if parsed is None:
        raise EvaluationError(
            f"URL parse error during conversion from string: parse {text[:200]!r}: invalid URI for request"
        )
    return parsed


@URLS.declare("isURL(string) -> bool")
def is_url(text: str) -> bool:
    return parse_url(text) is not None


@URLS.declare("<kubernetes.URL>.getScheme() -> string")
def get_scheme(value: URL) -> str:
    return value.parts.scheme


@URLS.declare("<kubernetes.URL>.getHost() -> string")
def get_host(value: URL) -> str:
    """Host and port; an IPv6 address keeps its brackets."""
    return value.parts.netloc.rpartition("@")[2]


@URLS.declare("<kubernetes.URL>.getHostname() -> string")
def get_hostname(value: URL) -> str:
    host = get_host(value)
    return host[1 : host.index("]")] if host.startswith("[") and "]" in host else host.partition(":")[0]


@URLS.declare("<kubernetes.URL>.getPort() -> string")
def get_port(value: URL) -> str:
    return get_host(value).rpartition("]")[2].partition(":")[2]


@URLS.declare("<kubernetes.URL>.getEscapedPath() -> string")
def get_escaped_path(value: URL) -> str:
    path = value.parts.path
    return path if "%" in path else quote(path, safe="/:@!$&'()*+,;=-._~")


@URLS.declare("<kubernetes.URL>.getQuery() -> map(string, list(string))")
def get_query(value: URL) -> dict[str, list[str]]:
    return parse_qs(value.parts.query, keep_blank_values=True)


@URLS.declare("string(kubernetes.URL) -> string")
def string_from_url(value: URL) -> str:
    return value.text


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> Address | None:
    """An IPv4 or IPv6 address without zone; IPv4 in IPv6 is refused, as its two spellings invite mistakes."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id is not None or address.ipv4_mapped is not None):
        return None
    return address


@IPS.declare("ip(string) -> net.IP")
def ip(text: str) -> IP:
    address = parse_ip(text)
    if address is None:
        raise EvaluationError(f"IP Address {text[:64]!r} parse error during conversion from string")
    return IP(address)


@IPS.declare("isIP(string) -> bool")
def is_ip(text: str) -> bool:
    return parse_ip(text) is not None


@IPS.declare("ip.isCanonical(string) -> bool")
def is_canonical(text: str) -> bool:
    return str(ip(text).address) == text


@IPS.declare("<net.IP>.family() -> int")
def family(value: IP) -> int:
    return value.address.version


@IPS.declare("<net.IP>.isUnspecified() -> bool")
def is_unspecified(value: IP) -> bool:
    return value.address.is_unspecified


@IPS.declare("<net.IP>.isLoopback() -> bool")
def is_loopback(value: IP) -> bool:
    return value.address.is_loopback


@IPS.declare("<net.IP>.isLinkLocalMulticast() -> bool")
def is_link_local_multicast(value: IP) -> bool:
    if value.address.version == 4:
        return value.address in ipaddress.ip_network("224.0.0.0/24")
    return value.address.packed[0] == 0xFF and value.address.packed[1] & 0x0F == 2


@IPS.declare("<net.IP>.isLinkLocalUnicast() -> bool")
def is_link_local_unicast(value: IP) -> bool:
    return value.address in ipaddress.ip_network("169.254.0.0/16" if value.address.version == 4 else "fe80::/10")


@IPS.declare("<net.IP>.isGlobalUnicast() -> bool")
def is_global_unicast(value: IP) -> bool:
    """Anything that is not another kind; private addresses count (Go's netip.Addr.IsGlobalUnicast)."""
    address = value.address
    broadcast = address == ipaddress.IPv4Address("255.255.255.255")
    other = address.is_unspecified or address.is_loopback or address.is_multicast or is_link_local_unicast(value)
    return not (other or broadcast)


@IPS.declare("string(net.IP) -> string")
def string_from_ip(value: IP) -> str:
    return str(value)


@lru_cache(maxsize=1024)
def parse_cidr(text: str) -> CIDR | None:
    head, slash, length = text.partition("/")
    address = parse_ip(head)
    if (
        address is None
        or not slash
        or not re.fullmatch(r"0|[1-9][0-9]{0,2}", length)
        or int(length) > address.max_prefixlen
    ):
        return None
    return CIDR(address, int(length))


@CIDRS.declare("cidr(string) -> net.CIDR")
def cidr(text: str) -> CIDR:
    parsed = parse_cidr(text)
    if parsed is None:
        raise EvaluationError(f"network address parse error during conversion from string: {text[:64]!r}")
    return parsed


@CIDRS.declare("isCIDR(string) -> bool")
def is_cidr(text: str) -> bool:
    return parse_cidr(text) is not None


@CIDRS.declare("<net.CIDR>.containsIP(net.IP) -> bool")
def contains_ip(block: CIDR, address: IP) -> bool:
    return address.address in block.network


@CIDRS.declare("<net.CIDR>.containsIP(string) -> bool")
def contains_ip_text(block: CIDR, address: str) -> bool:
    return contains_ip(block, ip(address))


@CIDRS.declare("<net.CIDR>.containsCIDR(net.CIDR) -> bool")
def contains_cidr(block: CIDR, other: CIDR) -> bool:
    return block.prefix <= other.prefix and other.address in block.network


@CIDRS.declare("<net.CIDR>.containsCIDR(string) -> bool")
def contains_cidr_text(block: CIDR, other: str) -> bool:
    return contains_cidr(block, cidr(other))


@CIDRS.declare("<net.CIDR>.ip() -> net.IP")
def block_ip(block: CIDR) -> IP:
    return IP(block.address)


@CIDRS.declare("<net.CIDR>.masked() -> net.CIDR")
def masked(block: CIDR) -> CIDR:
    return CIDR(block.network.network_address, block.prefix)


@CIDRS.declare("<net.CIDR>.prefixLength() -> int")
def prefix_length(block: CIDR) -> int:
    return block.prefix


@CIDRS.declare("string(net.CIDR) -> string")
def string_from_cidr(block: CIDR) -> str:
    return str(block)
