"""Who may import whom. Every import counts: inside functions, under TYPE_CHECKING and through import_module too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "probewire"

ARROWS: dict[str, set[str]] = {
    "protos": set(),
    "backends": {"protos"},
    "server": {"backends", "protos"},
    "clients": {"protos"},
    "analysis": {"clients", "protos"},
    "agents": {"analysis", "clients", "protos"},
    "cli": {"agents", "analysis", "backends", "clients", "protos", "server"},
}
"""Folder -> the other folders it may import."""

ROOMS: dict[str, set[str]] = {
    "server/auth": {"server/state"},
    "server/state": {"server/auth"},
    "server/worker": {"server/auth", "server/state"},
    "server/gateway": {"server/auth", "server/state"},
    "server/api": {"server/auth"},
}
"""Folder of the server -> the others it may import, beside the files in server/ itself, which import no worker and no
gateway either. The API reaches both through server/service.py."""

STARTS = {"server/worker/main.py": "server/api"}
"""What starts a process puts its parts together."""

HOMES: dict[str, tuple[str, ...]] = {
    "mlx": ("backends/mlx",),
    "mlx_lm": ("backends/mlx",),
    "mcp": ("agents",),
    "lm_eval": ("analysis/reports",),
    "torch": ("backends/torch", "analysis/sae", "analysis/tuning"),
    "peft": ("analysis/tuning",),
    # In backends/mlx for AutoConfig alone, which fills in what a config.json leaves to defaults (mlx-lm requires it).
    "transformers": (
        "backends/torch",
        "backends/mlx",
        "backends/model/tokenizer",
        "backends/checkpoints",
        "analysis/tuning",
    ),
    "tokenizers": ("backends/torch", "backends/mlx", "backends/model/tokenizer", "backends/checkpoints"),
}
"""Library -> the only folders and files that may import it. analysis/sae and analysis/tuning train, and import it late."""

ANY_TRANSFORMERS = ("backends/torch", "analysis/tuning")
"""Where transformers' models may be imported; elsewhere only its tokenizers and configurations."""

HEAVY = {"mlx", "mlx_lm", "peft", "torch", "transformers"}

LIGHT = ("protos", "server", "clients", "analysis", "agents", "cli")
"""Folders whose modules load no tensor library when imported (the worker process loads one when it starts)."""


def violations(root: Path, sources: list[Path]) -> list[str]:
    """What the modules at `sources`, relative to `root`, import against the rules."""
    return [
        f"{path.as_posix()}:{line}: {problem}"
        for path in sources
        for line, name in _imports(root, path)
        for problem in _problems(path, name)
    ]


def _imports(root: Path, path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import; a relative one keeps a leading dot: `.probewire.protos.spec`."""
    package = [PACKAGE, *path.parent.parts]
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(package, "." * node.level + (node.module or ""))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
            yield node.lineno, _dynamic(package, node.args[0])


def _absolute(package: list[str], name: str) -> str:
    level = len(name) - len(name.lstrip("."))
    start = ["", *package[: len(package) - level + 1]] if level else []
    return ".".join([*start, *filter(None, [name.strip(".")])])


def _dynamic(package: list[str], name: ast.expr) -> str:
    """The name given to import_module; of an f-string the text before its first field; "?" where neither says enough."""
    if isinstance(name, ast.JoinedStr):
        name = name.values[0]
    if not isinstance(name, ast.Constant) or not isinstance(name.value, str) or name.value == "..":
        return "?"
    return _absolute(package, name.value)


def _problems(path: Path, name: str) -> Iterator[str]:
    here = path.parts[0]
    relative = name.startswith(".")
    top, *rest = name.strip(".").split(".")
    if name == "?":
        yield "imports a name that is only known at run time; write it out"
    elif top in ARROWS and not relative:
        yield f"imports the bare name {top}; write it relative"
    elif top == PACKAGE and not relative:
        yield f"imports {name} by its absolute name; inside the package imports are relative"
    elif top == PACKAGE:
        there = rest[0] if rest else PACKAGE
        if there != here and there not in ARROWS.get(here, set()):
            yield f"{here} must not import {there} (may: {', '.join(sorted(ARROWS.get(here, set()))) or 'nothing'})"
        yield from _room_problems(path, rest)
        backends = [parts[1] for parts in (path.parts, rest) if len(parts) > 1 and parts[0] == "backends"]
        if set(backends) == {"torch", "mlx"}:
            yield f"backends/{backends[0]} must not import backends/{backends[1]}"
    elif top in HOMES and not _below(path, HOMES[top]):
        yield f"imports {top}, which belongs to {', '.join(HOMES[top])}"
    elif top == "transformers" and not _below(path, ANY_TRANSFORMERS):
        if not any(word in name for word in ("Tokenizer", "Config", "tokenization", "gguf", "ggml")):
            yield f"imports {name}; outside {', '.join(ANY_TRANSFORMERS)} only tokenizers and configurations"
    elif top.startswith("mlx") and not _below(path, HOMES["mlx"]):
        yield f"imports {top}, which belongs to {', '.join(HOMES['mlx'])}"


def _room_problems(path: Path, there: list[str]) -> Iterator[str]:
    """What a file of the server imports from a room that is not its own."""
    room, own = "/".join(there[:2]), "/".join(path.parts[:2])
    if path.parts[0] != "server" or room not in ROOMS or room == own or STARTS.get(path.as_posix()) == room:
        return
    allowed = ROOMS.get(own, set(ROOMS) - {"server/worker", "server/gateway"})
    if room not in allowed:
        yield f"{own} must not import {room} (may: {', '.join(sorted(allowed))})"


def _below(path: Path, places: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def test_every_folder_has_its_arrows(package_folders: list[Path]) -> None:
    assert {folder.parts[0] for folder in package_folders} <= set(ARROWS)


def test_imports_follow_the_arrows(root: Path, package_sources: list[Path]) -> None:
    assert violations(root, package_sources) == []


def test_importing_loads_no_tensor_library(package_sources: list[Path]) -> None:
    modules = [
        ".".join([PACKAGE, *path.with_suffix("").parts]).removesuffix(".__init__")
        for path in package_sources
        if path.parts[0] in LIGHT
    ]
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = {{m.split('.')[0] for m in sys.modules}} & {HEAVY!r}\n"
        "    if loaded: sys.exit(f'importing {name} loads {sorted(loaded)}')\n"
    )
    run = subprocess.run([sys.executable, "-c", script, *modules], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("path", "source", "problem"),
    [
        ("protos/a.py", "from ..server import config", "protos must not import server (may: nothing)"),
        ("backends/a.py", "def f():\n    from ..server.config import Config", "backends must not import server"),
        ("server/a.py", "from .. import clients", "server must not import clients"),
        ("clients/a.py", "from ..backends.base import Backend", "clients must not import backends"),
        ("analysis/sae/a.py", "from ...backends import sites", "analysis must not import backends"),
        ("server/worker/a.py", "from ..gateway.roster import Roster", "server/worker must not import server/gateway"),
        ("server/gateway/a.py", "from ..worker import model", "server/gateway must not import server/worker"),
        ("server/api/http/a.py", "from ...gateway.gateway import Gateway", "server/api must not import server/gateway"),
        ("server/config.py", "from .worker.pace import Pace", "server/config.py must not import server/worker"),
        ("backends/torch/a.py", "from ...cli.__main__ import main", "backends must not import cli"),
        ("backends/torch/a.py", "from ..mlx import engine", "backends/torch must not import backends/mlx"),
        ("server/a.py", "if TYPE_CHECKING:\n    from ..cli import x", "server must not import cli"),
        ("clients/a.py", "importlib.import_module('..server', __package__)", "clients must not import server"),
        ("clients/a.py", "import_module(name)", "only known at run time"),
        ("clients/a.py", "import_module(f'..{name}', __package__)", "only known at run time"),
        ("clients/a.py", "import_module(f'..server.{name}', __package__)", "clients must not import server"),
        ("server/a.py", "from probewire.protos import spec", "inside the package imports are relative"),
        ("server/a.py", "import protos.spec", "imports the bare name protos"),
        ("server/a.py", "import torch", "imports torch, which belongs to backends/torch"),
        ("backends/mlx/a.py", "from torch.nn import Linear", "imports torch, which belongs to backends/torch"),
        ("backends/torch/a.py", "import mlx.core as mx", "imports mlx, which belongs to backends/mlx"),
        ("backends/a.py", "from mlx_lm import load", "imports mlx_lm, which belongs to backends/mlx"),
        ("backends/a.py", "import mlx_vlm", "imports mlx_vlm, which belongs to backends/mlx"),
        ("server/a.py", "from transformers import AutoTokenizer", "imports transformers, which belongs to"),
        ("backends/checkpoints/a.py", "from transformers import AutoModelForCausalLM", "only tokenizers and"),
        ("backends/mlx/a.py", "from transformers import LlamaForCausalLM", "only tokenizers and"),
        ("backends/model/tokenizer/a.py", "import transformers", "only tokenizers and"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, path: str, source: str, problem: str) -> None:
    found = violations(tmp_path, [_planted(tmp_path, path, source)])
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("protos/a.py", "from .errors import NotFound\nfrom . import spec"),
        ("backends/torch/a.py", "import torch\nfrom transformers import LlamaForCausalLM\nfrom ..base import Backend"),
        ("backends/a.py", "from .torch import engine\nimport_module(f'.{name}', __package__)"),
        ("backends/model/tokenizer/a.py", "from transformers import AutoTokenizer"),
        ("backends/mlx/a.py", "import mlx.core as mx\nfrom transformers import AutoConfig"),
        (
            "server/a.py",
            "from ..backends.hooks.base import Backend\nfrom ..protos.spec import Site\nimport server_timing",
        ),
        ("analysis/sae/a.py", "from ...clients import Client"),
        ("server/worker/main.py", "from ..api.grpc.service import RpcServer\nfrom ..auth.callers import Caller"),
        ("cli/__main__.py", "from ..server import config\nfrom ..clients import Client"),
    ],
)
def test_a_right_import_passes(tmp_path: Path, path: str, source: str) -> None:
    assert violations(tmp_path, [_planted(tmp_path, path, source)]) == []


def _planted(root: Path, path: str, source: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    return Path(path)
