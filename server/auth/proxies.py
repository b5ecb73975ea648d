"""The proxies in front of a box: whose word about the caller's address is taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import unquote

from ...protos.errors import InvalidArgument
from ...protos.hosts import address_of, canonical

__all__ = ["FORWARDED_FOR", "NO_PROXIES", "Proxies", "host_of"]

FORWARDED_FOR = "x-forwarded-for"
"""Whom the proxy was called by: a header of HTTP, metadata of gRPC."""


@dataclass(frozen=True, slots=True)
class Proxies:
    """Addresses and networks that the operator trusts (`--trusted-proxy`). Nobody else is believed."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def of(cls, given: Iterable[str]) -> Proxies:
        """From `10.0.0.2`, `::1` or `10.0.0.0/8`. Raises InvalidArgument for anything else."""
        return cls(tuple(_network(text) for text in given))

    def trust(self, host: str) -> bool:
        """Whether a host is one of them."""
        address = address_of(host)
        return address is not None and any(address in network for network in self.networks)

    def caller(self, host: str, forwarded_for: Sequence[str]) -> str:
        """Who is behind the connection from `host`, whose X-Forwarded-For headers are given.

        Each proxy adds the address it was called from at the end, and what stands before that is its caller's own word:
        so the last address that is no proxy of ours. What is not an address is not believed.
        """
        caller = canonical(host)
        for text in reversed(",".join(forwarded_for).split(",")):
            address = address_of(_without_port(text.strip()))
            if address is None or not self.trust(caller):
                break
            caller = str(address)
        return caller


NO_PROXIES = Proxies()


def _network(text: str) -> IPv4Network | IPv6Network:
    address = address_of(text)
    try:
        return ip_network(text if address is None else address)
    except ValueError as error:
        raise InvalidArgument(
            f"--trusted-proxy {text!r} is no address or network ({error}); write 10.0.0.2, ::1 or 10.0.0.0/8"
        ) from None


def _without_port(text: str) -> str:
    """Some proxies write `1.2.3.4:567` and `[::1]:567`."""
    head, colon, port = text.rpartition(":")
    is_port = colon and port.isdecimal() and (head.endswith("]") or ":" not in head)
    return head if is_port else text


def host_of(peer: str) -> str:
    """The address in gRPC's `ipv4:1.2.3.4:5` and `ipv6:%5B::1%5D:5`; other peers (`unix:`) as they are."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return canonical(_without_port(unquote(rest)))
