"""HTTP/1.1 requests whose length can be read in one way only, so that no proxy in front takes two of them for one."""

from __future__ import annotations

import re

import h11

__all__ = ["StrictConnection"]

_LENGTH = re.compile(rb"[0-9]+")


class StrictConnection(h11.Connection):
    """h11, without what it mends in silence: two lengths, a length beside chunks, headers that go on in the next line."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11's; raises RemoteProtocolError for a head that others might read differently."""
        if self.their_state is not h11.IDLE:
            return super().next_event()
        before, _ = self.trailing_data
        event = super().next_event()
        if isinstance(event, h11.Request):
            after, _ = self.trailing_data
            problem = _ambiguity(before[: len(before) - len(after)], event.http_version)
            if problem:
                raise h11.RemoteProtocolError(problem)
        return event


def _ambiguity(head: bytes, http_version: bytes) -> str:
    """What is wrong with the head of a request that h11 has let pass; empty: nothing."""
    lines = head.split(b"\n")[1:]
    if any(line[:1] in (b" ", b"\t") for line in lines):
        return "a header that goes on in the next line"
    headers = [line.partition(b":") for line in lines]
    lengths = [value.strip() for name, _, value in headers if name.lower() == b"content-length"]
    chunked = any(name.lower() == b"transfer-encoding" for name, _, _ in headers)
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        return "more than one Content-Length"
    if chunked and lengths:
        return "Content-Length beside Transfer-Encoding"
    if chunked and http_version == b"1.0":
        return "Transfer-Encoding in HTTP/1.0"
    return ""
