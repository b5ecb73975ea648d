"""`probewire chat` with its input piped in, against the real gRPC API over a model known by heart."""

from __future__ import annotations

import io
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_server import FakeServer, wait_for  # pyright: ignore[reportMissingImports] - lies beside the clients' tests
from fake_service import FakeService, info  # pyright: ignore[reportMissingImports] - as above
from tiny_terminal import Script, TinyTerminal

from probewire.cli.__main__ import main
from probewire.cli.chat.shows import parse_show
from probewire.cli.chat.steering import from_file, parse_steering
from probewire.cli.token_table import bar, number, shown_token, visible
from probewire.clients import InvalidArgument, Unavailable

Chat = Callable[..., list[str]]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    server = FakeServer(FakeService())
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def anew(server: FakeServer) -> None:
    """The fake as it was at first."""
    server.service.__dict__.update(FakeService().__dict__)


@pytest.fixture
def chat(server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    """Runs a whole chat; gives the lines on the screen."""

    def run(*lines: str, options: tuple[str, ...] = (), status: int = 0) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert main(["chat", "--url", server.grpc_url, "--max-new-tokens", "3", *options]) == status
        captured = capsys.readouterr()
        return (captured.out + captured.err).splitlines()

    return run


def test_a_conversation(chat: Chat, server: FakeServer) -> None:
    lines = chat("hi", "more", "/reset", "again", options=("--system", "Be kind.", "--temperature", "0.5"))
    assert lines[0] == "fake  numpy on cpu, bfloat16   /help for commands"
    assert lines[1:4] == ["you › hi", "model › ;<=", "3 tokens · length · 6.0 tokens/s"]
    first, second, third = (request.inputs[0].messages for request in server.service.requests)
    assert [m.content for m in first or ()] == ["Be kind.", "hi"]
    assert [(m.role, m.content) for m in (second or ())[2:]] == [("assistant", ";<="), ("user", "more")]
    assert [m.content for m in third or ()] == ["Be kind.", "again"]


def test_shown_numbers_stand_under_the_token_they_belong_to(chat: Chat) -> None:
    lines = chat("hi", options=("--show", "resid_post.0", "--show", "mlp_act.1:unit=2", "--show", "embed:top_k=2"))
    at = lines.index("model ›")
    # tokens 59 60 61; a row of resid_post.0 is [id]·4, so its norm is twice the id; the last token is never read
    assert lines[at + 1 : at + 9] == [
        "a resid_post.0:norm",
        "b mlp_act.1:unit=2",
        "c embed:top_k=2",
        "  ;         <         =",
        "a █ 118.0   █ 120.0   –",
        "b █ 1056    █ 1056    –",  # 1059 and 1060 in bfloat16
        "c 0:59.0    0:60.0    –",
        "  1:59.0    1:60.0    –",
    ]


def test_logits_are_shown_as_words(chat: Chat) -> None:
    lines = chat("hi", options=("--show", "logits:top_k=1"))
    assert any(line.startswith("a ␀:59.0") for line in lines)  # all 256 logits are alike, so token 0 is first


def test_steering_from_files_and_commands(chat: Chat, server: FakeServer, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([1, 0, 0, 0], np.float32))
    lines = chat(
        "hi", "/alpha 3", "hi", "/off", "hi", "/steer resid_post.1 nope.npy", options=("--steer", f"resid_post.1={tmp_path}/v.npy:2")
    )  # fmt: skip
    replies = [line for line in lines if line.startswith("model")]
    assert replies == [
        "model (steered: resid_post.1 × 2) › =@C",
        "model (steered: resid_post.1 × 3) › >BF",
        "model › ;<=",
    ]
    assert lines[-2] == "cannot read the vector in nope.npy: [Errno 2] No such file or directory: 'nope.npy'"


def test_steering_from_two_prompts(chat: Chat, server: FakeServer) -> None:
    lines = chat('/steer resid_post.0 "xb" "xa" alpha=20', "/steer resid_post.0 a a", "hi")
    # rows [98]·4 and [97]·4: the direction is (1,1,1,1), its length a tenth of 195
    assert "steer resid_post.0 + 20 × ('xb' − 'xa') (norm 19.5)" in lines
    assert any("are the same at resid_post.0" in line for line in lines)
    request = server.service.requests[-1]
    assert (request.plan.hooks, request.session) == ((), "ses-1")
    [[hook]] = [plan.hooks for plan in server.service.live.plans]
    np.testing.assert_allclose(hook.edit.vector.floats(), [9.75] * 4, rtol=1e-6)


def test_commands_that_go_wrong_end_nothing(chat: Chat) -> None:
    lines = chat(
        "/bogus", "/alpha x", "/alpha 2", "/steer", '/steer "', "/show nope", "/show z.0", "hi", "/quit", "unread"
    )
    text = "\n".join(lines)
    for message in (
        "no command /bogus; there are /help",
        "nothing steers yet",
        "write /steer SITE FILE",
        "No closing quotation",
        "unknown site 'nope'",
        "z needs a head: add :head=0",
        "model › ;<=",
    ):
        assert message in text
    assert "unread" not in text


def test_steering_that_the_server_refuses_changes_nothing(chat: Chat, server: FakeServer, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([1, 0, 0, 0], np.float32))
    steer = f"/steer resid_post.1 {tmp_path}/v.npy alpha=2"
    lines = chat(steer, f"/steer resid_post.9 {tmp_path}/v.npy", "hi", f"/steer resid_post.1 {tmp_path}/v.npy", "hi")
    assert any("0:3" in line for line in lines)
    assert [line for line in lines if line.startswith("model")] == [
        "model (steered: resid_post.1 × 2) › =@C",
        "model (steered: resid_post.1 × 1) › <>@",
    ]
    assert server.service.live.kept == {}  # the chat cleans up behind itself


def test_steering_that_is_refused_at_the_start_is_one_line(chat: Chat, server: FakeServer, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones(4, np.float32))
    [line] = chat("hi", options=("--steer", f"resid_post.9={tmp_path}/v.npy"), status=2)
    assert line.startswith("probewire: site resid_post.9 names layers 9:10")


def test_a_refusal_by_the_server_is_told_and_the_turn_taken_back(chat: Chat, server: FakeServer) -> None:
    server.service.before_step = _fail_once(server.service)
    lines = chat("first", "second")
    assert "the worker has gone" in lines
    assert [m.content for m in server.service.requests[-1].inputs[0].messages or ()] == ["second"]


def _fail_once(service: FakeService):
    def before_step(index: int) -> None:
        service.before_step = lambda index: None
        raise Unavailable("the worker has gone")

    return before_step


def test_a_session_that_was_deleted_elsewhere_is_made_again(chat: Chat, server: FakeServer, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([1, 0, 0, 0], np.float32))
    server.service.before_step = lambda index: server.service.live.kept.clear()
    lines = chat("hi", "hi", "/alpha 3", "hi", options=("--steer", f"resid_post.1={tmp_path}/v.npy:2"))
    assert [line for line in lines if line.startswith("model")] == [
        "model (steered: resid_post.1 × 2) › =@C",
        "model (steered: resid_post.1 × 2) › =@C",
        "model (steered: resid_post.1 × 3) › >BF",
    ]


@pytest.fixture
def terminal(server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs a chat that steers resid_post.1 by 4 in a terminal; gives the screen at the end."""
    np.save(tmp_path / "v.npy", np.array([1, 0, 0, 0], np.float32))
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)

    def run(script: Script, *options: str, tokens: int = 12) -> str:
        with os.fdopen(os.dup(slave)) as stdin, os.fdopen(os.dup(slave), "w") as stdout:
            monkeypatch.setattr(sys, "stdin", stdin)
            monkeypatch.setattr(sys, "stdout", stdout)
            steer = ("--steer", f"resid_post.1={tmp_path}/v.npy:4", "--max-new-tokens", str(tokens))
            with TinyTerminal(master, script, width=60) as screen:
                assert main(["chat", "--url", server.grpc_url, *steer, *options]) == 0
                stdout.flush()
            screen.finish()
        assert termios.tcgetattr(slave) == before
        return screen.text()

    for name, value in (("TERM", "xterm"), ("COLUMNS", "60"), ("LINES", "24")):
        monkeypatch.setenv(name, value)
    yield run
    os.close(slave)
    os.close(master)


def waiting(service: FakeService, revisions: dict[int, int]) -> Callable[[int], None]:
    """Before some steps, wait until the chat's session is at a revision: what the keys did, on any machine."""

    def before_step(index: int) -> None:
        wanted = revisions.get(index, 0)
        wait_for(lambda: max((session.revision for session in service.live.kept.values()), default=0) >= wanted, 20)

    return before_step


def test_keys_steer_while_the_text_streams(terminal: Callable[..., str], server: FakeServer) -> None:
    server.service.before_step = waiting(server.service, {3: 2, 5: 3, 7: 4})
    script = Script(("you ›", "hi\n"), ("?DI", "\x1b[A"), ("×5·r2⟩OU", "0"), ("off·r3⟩VW", "0"), ("you ›", "/quit\n"))
    lines = terminal(script, tokens=9).splitlines()
    at = lines.index("model (steered: resid_post.1 × 4) ›")  # a word too long for the line begins the next one
    assert lines[at + 1 : at + 3] == ["?DI⟨×5·r2⟩OU⟨off·r3⟩VW⟨×5·r4⟩]c", "9 tokens · length · 18.0 tokens/s"]
    assert lines[at + 3].startswith("steer resid_post.1 + 5 × ")  # kept for the next reply


def test_the_status_line_tells_strength_and_revision(terminal: Callable[..., str], server: FakeServer) -> None:
    server.service.step_s = 0.02
    script = Script(
        ("you ›", "hi\n"),
        ("steering × 4 · r1   ↑ ↓ strength · 0 off", "--"),
        ("steering × 2 · r2", "0"),
        ("steering off · r3   ↑ ↓ strength · 0 on", signal.SIGINT),
        ("(stopped; the server was told)", ""),
        ("you ›", "\x04"),
    )
    terminal(script, tokens=5000)


def test_shown_numbers_and_keys_go_together(terminal: Callable[..., str], server: FakeServer) -> None:
    server.service.before_step = waiting(server.service, {3: 2})
    script = Script(("you ›", "hi\n"), ("I", "+"), ("⟨×5·r2⟩", ""), ("you ›", "/quit\n"))
    lines = terminal(script, "--show", "embed:norm", tokens=4).splitlines()
    at = lines.index("a embed:norm") + 1
    assert lines[at : at + 2] == [
        "  ?         ~D        ~I        ⟨×5·r2⟩   ~O",
        "a █ 126.0   █ 136.0   █ 146.0             –",
    ]


def test_a_change_that_the_server_refuses_is_told_and_the_reply_goes_on(
    terminal: Callable[..., str], server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = threading.Event()

    def refused(request):
        refusals.set()
        raise InvalidArgument("this generation cannot follow")

    monkeypatch.setattr(server.service.live, "update", refused)
    server.service.before_step = lambda index: wait_for(refusals.is_set, 20) and None if index == 3 else None
    script = Script(
        ("you ›", "hi\n"), ("?DI", "+"), ("not changed: this generation cannot follow", ""), ("you ›", "/quit\n")
    )
    text = terminal(script, tokens=8)
    assert "8 tokens · length" in text
    assert "⟨" not in text


def test_nothing_to_steer_means_no_keys(terminal: Callable[..., str], server: FakeServer) -> None:
    """And what is typed meanwhile waits for the next prompt."""
    script = Script(("you ›", "/off\n"), ("you ›", "hi\n"), ("<", "/qu"), ("5 tokens", ""), ("you ›", "it\n"))
    assert "5 tokens · length" in terminal(script, tokens=5)
    assert not server.service.live.kept


def test_help_and_sites(chat: Chat) -> None:
    text = "\n".join(chat("/help", "/sites", "/show", "/show off"))
    assert "/steer SITE" in text
    assert "resid_post.LAYER" in text
    assert "nothing shown; /show SITE" in text


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "grpc://127.0.0.1:1"]) == 2
    assert "start a server with `probewire serve`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resid_post.1:unit=4", "has the units 0 … 3"),
        ("resid_post.1:unit", "unit needs a number"),
        ("resid_post.1:top_k=9", "top_k of 1 … 8"),
        ("resid_post.1:norm:unit=1", "choose one of norm"),
        ("resid_post.1:head=0", "resid_post has no heads"),
        ("resid_post.*", "stands for several sites"),
        ("resid_post.1:max", "unknown site"),
        ("module:model.x:output:unit=3", "width of module:model.x:output is not known"),
    ],
)
def test_shows_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse_show(text, info())


def test_shows() -> None:
    assert str(parse_show("z.1:top_k=2:head=1", info())) == "z.1:top_k=2:head=1"
    assert str(parse_show("module:model.x:output", info())) == "module:model.x:output:norm"
    assert str(parse_show("blocks.2.hook_resid_post", info())) == "resid_post.2:norm"


def test_vectors_in_files(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    v = np.arange(4, dtype=np.float32)
    save_file({"a": v, "b": v + 1}, tmp_path / "two.safetensors")
    path = str(tmp_path / "two.safetensors")
    assert parse_steering(f"embed={path}#b:-2").alpha == -2
    np.testing.assert_array_equal(from_file("embed", f"{path}#b", 1).vector, v + 1)
    with pytest.raises(InvalidArgument, match="holds a, b; choose one"):
        from_file("embed", path, 1)
    np.save(tmp_path / "deep.npy", np.zeros((2, 2, 2)))
    with pytest.raises(InvalidArgument, match=r"shape \[2, 2, 2\]"):
        from_file("embed", str(tmp_path / "deep.npy"), 1)
    with pytest.raises(InvalidArgument, match=r"allowed: \.npy and \.safetensors"):
        from_file("embed", "x.gguf", 1)
    with pytest.raises(InvalidArgument, match="write SITE=FILE"):
        parse_steering("resid_post.3")


def test_tokens_and_numbers_in_cells() -> None:
    assert [shown_token(t, first=False) for t in (" the", "ing", ".", "\n\n", " ", "", "\x1b[2J")] == [
        "the", "~ing", ".", "⏎⏎", "␣", "·", "␛[2J",
    ]  # fmt: skip
    assert shown_token("The", first=True) == "The"
    assert visible("a\x1b\n\x7f\x9b") == "a␛\n␡�"
    assert [number(v) for v in (0, 0.5, -12.34, 1234.5, -1e7, 1e-5)] == [
        "0.00",
        "0.50",
        "-12.3",
        "1234",
        "-1e+07",
        "1e-05",
    ]
    assert [bar(v, 8.0) for v in (0, 1, -4, 8)] == ["▁", "▂", "▅", "█"]
    assert bar(0, 0) == "▁"
