"""What a host is, however it is written."""

from __future__ import annotations

import pytest

from probewire.protos.hosts import canonical, is_loopback


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1.",
        "127.255.255.254",
        "::1",
        "[::1]",
        "0:0:0:0:0:0:0:1",
        "::1%lo",
        "::ffff:127.0.0.1",
        "[::FFFF:127.0.0.9]",
        "::ffff:7f00:1",
    ],
)
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "[]",
        "0.0.0.0",  # noqa: S104  nothing binds here
        "::",
        "[::]",
        "128.0.0.1",
        "126.255.255.255",
        "10.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0.0.0.0",
        "::2",
        "[::1",
        "::1]",
        "localhost..",
        "localhost.evil.example",
        "localhost:8000",
        "127.0.0.1:8000",
        "127.0.0.1.evil.example",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
    ],
)
def test_any_other(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("Box.Lab.", "box.lab"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("::ffff:10.0.0.5", "10.0.0.5"),
        ("fe80::1%eth0", "fe80::1"),
        ("10.0.0.5.", "10.0.0.5"),
    ],
)
def test_one_spelling_of_each(host: str, expected: str) -> None:
    assert canonical(host) == canonical(expected) == expected
