"""Whose word about the caller's address is taken: that of proxies that the operator has named, and no more of it."""

from __future__ import annotations

import pytest

from probewire.protos.errors import InvalidArgument
from probewire.server.auth.proxies import NO_PROXIES, Proxies, host_of

LOCAL = Proxies.of(["127.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32"])


@pytest.mark.parametrize(
    ("host", "forwarded_for", "expected"),
    [
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["6.6.6.6"], "6.6.6.6"),
        ("127.0.0.1", ["1.1.1.1, 6.6.6.6"], "6.6.6.6"),  # what stood there before is the caller's own word
        ("127.0.0.1", ["1.1.1.1", "6.6.6.6"], "6.6.6.6"),
        ("127.0.0.1", ["1.1.1.1, 6.6.6.6, 10.1.2.3"], "6.6.6.6"),
        ("127.0.0.1", ["10.1.1.1, 10.1.2.3"], "10.1.1.1"),  # all of them are ours
        ("127.0.0.1", ["6.6.6.6:1234"], "6.6.6.6"),
        ("127.0.0.1", ["[2001:DB9::1]:1234"], "2001:db9::1"),
        ("127.0.0.1", ["2001:db9::1"], "2001:db9::1"),
        ("127.0.0.1", ["::ffff:6.6.6.6"], "6.6.6.6"),
        ("::ffff:127.0.0.1", ["6.6.6.6"], "6.6.6.6"),
        ("::1", ["6.6.6.6"], "6.6.6.6"),
        ("127.0.0.1", ["unknown"], "127.0.0.1"),
        ("127.0.0.1", ["6.6.6.6, unknown"], "127.0.0.1"),
        ("127.0.0.1", ["6.6.6.6, unknown, 10.1.2.3"], "10.1.2.3"),
        ("127.0.0.1", ["'; drop table users"], "127.0.0.1"),
        ("127.0.0.1", ["", " , "], "127.0.0.1"),
        ("127.0.0.2", ["6.6.6.6"], "127.0.0.2"),
        ("6.6.6.6", ["127.0.0.1"], "6.6.6.6"),
    ],
)
def test_the_last_address_that_is_no_proxy_of_ours(host: str, forwarded_for: list[str], expected: str) -> None:
    assert LOCAL.caller(host, forwarded_for) == expected
    assert NO_PROXIES.caller(host, forwarded_for) == NO_PROXIES.caller(host, [])


@pytest.mark.parametrize("given", ["", "box.lab", "10.0.0.1/8", "10.0.0.0/33", "*", "127.0.0.1:80"])
def test_what_is_no_address_is_refused_by_name(given: str) -> None:
    with pytest.raises(InvalidArgument, match=r"--trusted-proxy .* is no address or network"):
        Proxies.of([given])


def test_addresses_are_told_apart_without_their_ports() -> None:
    assert host_of("ipv4:10.0.0.1:443") == "10.0.0.1"
    assert host_of("ipv6:[2001:db8::1]:443") == host_of("ipv6:%5B2001:db8::1%5D:443") == "2001:db8::1"
    assert host_of("ipv6:%5B::ffff:10.0.0.1%5D:443") == "10.0.0.1"
    assert host_of("ipv6:%5Bfe80::1%25eth0%5D:443") == "fe80::1"
    assert host_of("unix:") == "unix:"
