"""The letters that byte-level tokenizers write bytes as."""

from __future__ import annotations

__all__ = ["BYTE_OF"]


def _byte_alphabet() -> dict[str, int]:
    """The letter that byte-level tokenizers write for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
"""GPT-2's table."""
