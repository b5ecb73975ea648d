"""Hosts as people and headers write them: `localhost`, `Box.Lab.`, `127.0.0.1`, `[::1]`, `::ffff:10.0.0.5`."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

__all__ = ["address_of", "canonical", "is_loopback"]


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """The address that `host` is written as: without brackets and zone, an IPv4 one out of its IPv6 form. None: a name."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host.removesuffix(".")
    try:
        address = ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def canonical(host: str) -> str:
    """One spelling of each host: an address as Python writes it, a name in small letters without its last dot."""
    address = address_of(host)
    return host.lower().removesuffix(".") if address is None else str(address)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and nothing else."""
    address = address_of(host)
    return canonical(host) == "localhost" if address is None else address.is_loopback
