"""`Origin` and `Host` headers, read strictly."""

from __future__ import annotations

import pytest

from probewire.protos.errors import InvalidArgument
from probewire.server.auth.origins import Authority, Origin, host_name


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("box.lab", "box.lab", None),
        ("Box.LAB.", "box.lab", None),
        ("box.lab:8000", "box.lab", 8000),
        ("box.lab:", "box.lab", None),
        ("localhost:1", "localhost", 1),
        ("my_box-2", "my_box-2", None),
        ("10.0.0.5:80", "10.0.0.5", 80),
        ("[::1]", "::1", None),
        ("[::1]:8000", "::1", 8000),
        ("[0:0:0:0:0:0:0:1]", "::1", None),
        ("[2001:DB8::A]", "2001:db8::a", None),
        ("[::ffff:10.0.0.5]:80", "10.0.0.5", 80),
    ],
)
def test_a_host_has_one_spelling(text: str, host: str, port: int | None) -> None:
    assert Authority.of(text) == Authority(host, port)


BAD_HOSTS = [
    "",
    " ",
    "box lab",
    "box.lab ",
    "box..lab",
    ".box.lab",
    "-box.lab",
    "box.lab:80a",
    "box.lab:-1",
    "box.lab:123456",
    "box.lab:80:80",
    "user@box.lab",
    "box.lab/x",
    "box.lab?x",
    "box.lab#x",
    "http://box.lab",
    "böx.lab",
    "box.lab:٣",
    "::1",
    "[::1",
    "[]",
    "[::g]",
    "[:::1]",
    "[10.0.0.5.6]",
    "*",
    "box.lab,evil.lab",
    "box.lab\n",
    "box.lab\x00",
]


@pytest.mark.parametrize("text", BAD_HOSTS)
def test_what_nobody_sends_is_no_host(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Authority.of(text)
    assert caught.value.message == f"{text!r} is no host; it looks like box.lab, box.lab:8000, 10.0.0.5 or [::1]"


def test_a_refusal_shows_no_more_than_80_characters_of_a_host() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Authority.of("x y" * 1000)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("https://tool.lab", "https://tool.lab"),
        ("HTTPS://Tool.Lab", "https://tool.lab"),
        ("https://tool.lab:443", "https://tool.lab"),
        ("http://tool.lab:80", "http://tool.lab"),
        ("http://tool.lab:443", "http://tool.lab:443"),
        ("http://tool.lab:3000", "http://tool.lab:3000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://[::ffff:10.0.0.5]", "http://10.0.0.5"),
        ("vscode-webview://abc", "vscode-webview://abc"),
        ("app+x.y://abc:5", "app+x.y://abc:5"),
    ],
)
def test_an_origin_is_written_as_a_browser_does(text: str, written: str) -> None:
    origin = Origin.of(text)
    assert origin.text == written
    assert Origin.of(written) == origin, "and is read as the same"


@pytest.mark.parametrize(
    "text", ["http://tool.lab", "https://tool.lab:8443", "https://sub.tool.lab", "https://tool.la"]
)
def test_scheme_host_and_port_tell_origins_apart(text: str) -> None:
    assert Origin.of(text) != Origin.of("https://tool.lab")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "*",
        "tool.lab",
        "//tool.lab",
        "https:tool.lab",
        "https://",
        "https://tool.lab/",
        "https://tool.lab/x",
        "https://tool.lab?x",
        "https://tool.lab#x",
        "https://user@tool.lab",
        "https://tool.lab https://evil.lab",
        " https://tool.lab",
        "https://tool.lab\n",
        "1https://tool.lab",
        "file:///x",
    ],
)
def test_what_is_no_pages_origin_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Origin.of(text)
    assert "it looks like https://tool.lab" in caught.value.message


@pytest.mark.parametrize("text", ["https://*.tool.lab", "https://tool..lab", "https://[::g]", "https://tool.lab:x"])
def test_an_origin_at_no_host_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is no host"):
        Origin.of(text)


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://box.lab", "box.lab", True),
        ("http://box.lab", "box.lab:80", True),
        ("http://box.lab:80", "box.lab", True),
        ("https://box.lab", "box.lab", True),
        ("https://box.lab", "box.lab:443", True),
        ("http://box.lab:8000", "Box.Lab.:8000", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://box.lab", "box.lab:8000", False),
        ("http://box.lab:8000", "box.lab", False),
        ("https://box.lab", "box.lab:80", False),
        ("http://evil.lab", "box.lab", False),
        ("http://box.lab.evil", "box.lab", False),
    ],
)
def test_a_page_is_at_the_server_that_it_came_from(origin: str, host: str, same: bool) -> None:
    assert Origin.of(origin).is_at(Authority.of(host)) is same


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Box.Lab.", "box.lab"),
        ("10.0.0.5", "10.0.0.5"),
        ("::1", "::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("[::1]", "::1"),
    ],
)
def test_an_operators_host_is_a_name_alone(text: str, name: str) -> None:
    assert host_name(text) == name


@pytest.mark.parametrize(
    ("text", "write"), [("box.lab:8000", "box.lab"), ("[::1]:80", "::1"), ("10.0.0.5:1", "10.0.0.5")]
)
def test_an_operators_host_has_no_port(text: str, write: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        host_name(text)
    assert caught.value.message == f"{text!r} has a port, and a host is allowed at any: write {write}"


@pytest.mark.parametrize("text", ["http://box.lab", "box.lab/x", "", "box lab"])
def test_an_operators_host_is_no_url(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is no host"):
        host_name(text)
