"""IP addresses and CIDR blocks, as the Kubernetes libraries define them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from capstan.cel.errors import EvaluationError
from capstan.cel.library import Library
from capstan.cel.values import register_type

IPS: Final = Library("ip")
CIDRS: Final = Library("cidr")

_LONGEST: Final = 45
"""Characters of an IPv6 address that ends in an IPv4 one."""
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


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


@dataclass(frozen=True, slots=True)
class IP:
    address: Address

    def __str__(self) -> str:
        return str(self.address)


register_type("net.IP", IP)
register_type("net.CIDR", CIDR)


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> Address | None:
    """An IPv4 or IPv6 address without zone; IPv4 in IPv6 is refused, as its two spellings invite mistakes."""
    if len(text) > _LONGEST:
        return None
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
