"""The text of a reply above its status line: whole, in order, and broken only between words."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console
from rich.text import Text
from tiny_terminal import Screen

from probewire.cli.chat.page import PlainPage, StatusPage
from probewire.cli.token_table import TokenTable

WIDTH = 24
STATUS = Text("steering × 4")


def written(console: Console) -> str:
    """As a terminal gets it: the driver puts a carriage return before each line end."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().replace("\n", "\r\n")


def shown(pieces: list[str], *, ended: bool = True) -> list[str]:
    """The screen after pieces of text; "⟨…⟩" is a mark."""
    console = Console(width=WIDTH, height=12, force_terminal=True, file=io.StringIO(), legacy_windows=False)
    page = StatusPage(console, Text("model ›"), lambda: STATUS)
    for piece in pieces:
        page.mark(piece) if piece.startswith("⟨") else page.add(piece)
    if ended:
        page.end()
    screen = Screen(WIDTH)
    screen.write(written(console))
    return screen.text().rstrip("\n").split("\n")


def test_the_status_stands_beneath_the_last_line_and_goes_at_the_end() -> None:
    pieces = ["The", " quick", " brown", " fox", " jumps", " over"]
    assert shown(pieces, ended=False) == ["model › The quick brown", "fox jumps over", "steering × 4"]
    assert shown(pieces) == ["model › The quick brown", "fox jumps over"]
    assert shown([]) == ["model ›"]


def test_line_ends_blank_lines_tabs_and_marks() -> None:
    assert shown(["one\n\ntwo\n", "\tthree", "⟨×5·r2⟩", " four"]) == [
        "model › one", "", "two", "    three⟨×5·r2⟩ four",
    ]  # fmt: skip


def test_control_characters_move_nothing() -> None:
    assert shown(["a\x1b[2Jb\x9bc\r"]) == ["model › a␛[2Jb�c␍"]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_however_the_text_comes(seed: int) -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgh", k=rng.choice([1, 3, 7, 11, 23, 30]))) for _ in range(40)]
    text = "".join(word + rng.choice([" ", " ", " ", "  ", "\n", ", "]) for word in words)
    pieces, rest = list[str](), text
    while rest:
        n = rng.randint(1, 9)
        pieces.append(rest[:n])
        rest = rest[n:]
    lines = shown(pieces)
    assert "".join(lines).replace(" ", "") == ("model ›" + text).replace(" ", "").replace("\n", "")
    assert max(map(len, lines)) <= WIDTH
    console = Console(width=WIDTH)
    assert lines == [row.plain.rstrip() for row in Text("model › " + text.rstrip()).wrap(console, WIDTH)]


def test_a_plain_page_is_what_was_said() -> None:
    console = Console(width=WIDTH, file=io.StringIO())
    page = PlainPage(console, Text("model ›"))
    for piece in ("a long line that goes on", " and on"):
        page.add(piece)
    page.mark("⟨off·r2⟩")
    page.end()
    assert written(console) == "model › a long line that goes on and on⟨off·r2⟩\r\n"


def test_a_gloss_keeps_the_status_beneath_its_block() -> None:
    console = Console(width=WIDTH, height=12, force_terminal=True, file=io.StringIO(), legacy_windows=False)
    table = TokenTable(console, ["a"], [4], lambda: STATUS)
    for token in ("one", "two", "three", "four"):
        table.add(token)
        table.fill(0, str(len(token)))
    table.note("⟨r2⟩")
    table.redraw()
    before, screen = written(console), Screen(WIDTH)
    screen.write(before)
    assert screen.text().rstrip("\n").split("\n") == [
        "  one   two   three", "a 3     3     5", "", "  four  ⟨r2⟩", "a 4", "", "steering × 4",
    ]  # fmt: skip
    table.flush()
    screen.write(written(console)[len(before) :])
    assert "steering" not in screen.text()
