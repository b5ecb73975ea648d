"""What a server that is ready prints: lines that work as they stand."""

from __future__ import annotations

import ast

import pytest

from probewire.cli.serve import serving
from probewire.protos.model import ModelInfo


def _info(name: str) -> ModelInfo:
    return ModelInfo(name, "llama", "llama", "torch", "cpu", "float32", "sdpa", "", 2, 8, 2, 2, 4, 16, 64)


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
@pytest.mark.parametrize("has_users", [False, True])
def test_with_several_models_the_examples_name_one(
    names: tuple[str, ...], has_users: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    serving._announce([_info(name) for name in names], {}, "http://x:1", "grpc://x:2", has_users=has_users)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    [line] = [line for line in lines if ".generate(" in line]
    printed = ast.parse(line, mode="eval").body
    assert isinstance(printed, ast.Call)
    called = printed.args[0]
    assert isinstance(called, ast.Call)
    keywords = {one.arg: ast.literal_eval(one.value) for one in called.keywords}
    assert keywords == ({} if len(names) == 1 else {"model": "a"})
    [chat] = [line for line in lines if line.startswith("probewire chat")]
    assert chat.endswith(" --model a") == (len(names) > 1)


def test_what_could_not_be_loaded_is_named_beside_what_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    serving._announce([_info("a")], {"longer": "it is cut short"}, "http://x:1", "grpc://x:2", has_users=False)
    assert "  longer  COULD NOT BE LOADED: it is cut short\n" in capsys.readouterr().out
