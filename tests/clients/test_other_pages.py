"""Every block of Python of the README and of docs/ runs, in order, against the default model; every command is one there is."""

from __future__ import annotations

import argparse
import re
import shlex
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import FakeServer

from probewire.cli.__main__ import COMMANDS
from probewire.server.worker.inprocess import InProcessService
from tests.saes import write_sae

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))), "CONTRIBUTING.md")
CLEAN, CORRUPT = (
    f"When Mary and John went to the store, {name} gave a drink to" for name in ("John", "Mary")
)  # fmt: skip


@pytest.fixture(scope="module")
def box() -> Iterator[FakeServer]:
    """The default model behind both APIs, in this process."""
    service: Any = InProcessService.create(device="cpu")
    server = FakeServer(service)
    yield server
    server.stop()
    service.close()


def blocks(page: str, *languages: str) -> list[str]:
    """The blocks of some languages ("": of none), in order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [text for language, text in fenced if language in languages]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/attribution.md",
        "docs/circuits.md",
        "docs/editing.md",
        "docs/saes.md",
        "docs/sharing.md",
        "docs/steering.md",
        "docs/tuning.md",
        "docs/validation.md",
        "docs/variants.md",
        "docs/agents.md",
        "docs/skills/probewire/SKILL.md",
    ],
)
def test_every_block_of_python_runs(
    page: str, box: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("a page's call was refused"))
    write_sae(tmp_path / "saes" / "layer-15", d_in=576, d_sae=256, site="blocks.15.hook_resid_post")
    names: dict[str, Any] = {"clean": CLEAN, "corrupt": CORRUPT, "key": "pw_…"}
    names["v"] = np.ones(576, np.float32)
    for block in blocks(page, "python"):
        exec(compile(_here(block, box), page, "exec"), names)  # noqa: S102 - our own page
    with names["client"] as client:
        for sae in client.saes():
            client.unload_sae(sae.name)


def _here(block: str, box: FakeServer) -> str:
    """A page's text with this test's server, streams that end soon and grids that are coarse."""
    block = re.sub(r"Client\([^)\n]*\)(?=  #|\n|$)", f'Client("{box.grpc_url}")', block)
    block = re.sub(r'base_url="[^"]*", api_key=key', f'base_url="{box.http_url}/v1", api_key="none"', block)
    block = re.sub(r"client\.(stream|generate)\((?!.*max_new_tokens)", r"client.\1(max_new_tokens=22, prompt=", block)
    shorter = {
        "stream=True,": "stream=True, max_tokens=5,",
        "range(30)": "range(0, 30, 15)",
        "range(14)": "range(0, 14, 5)",
    }
    for as_written, here in {**shorter, '"SmolLM2-': '"HuggingFaceTB/SmolLM2-'}.items():
        block = block.replace(as_written, here)
    return block


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_there_is(page: str) -> None:
    """As the command line's own parser reads it; nothing is run."""
    for block in blocks(page, "", "sh"):
        for line in re.sub(r"\\\n|\$\([^)]*\)", " ", block).splitlines():
            found = re.search(r"(?:^|/|\s)probewire (\w+)\b(.*)", line)
            if found is not None and found[1] in COMMANDS:
                parser = argparse.ArgumentParser(exit_on_error=False)
                import_module(f"probewire.cli.{found[1]}").add_arguments(parser)
                parser.parse_args(shlex.split(found[2], comments=True))
            made = re.match(r"make (\w[\w-]*)", line)
            assert made is None or f"\n{made[1]}: " in (ROOT / "Makefile").read_text(), line


def test_what_is_listed_for_agents_is_there() -> None:
    listed = re.findall(r"\]\(([^)]+)\)", (ROOT / "docs/llms.txt").read_text())
    assert len(listed) > 10
    assert [name for name in listed if not (ROOT / "docs" / name).is_file()] == []
