"""The conventions of CONTRIBUTING.md that a machine can read off the tree."""

from collections import Counter
from pathlib import Path

MAX_LINES = 400
MAX_FILES = 25
"""Of a folder: more are another room."""
VAGUE_NAMES = {"common.py", "helpers.py", "misc.py", "utils.py"}

ONLY_IN_ONE_BACKEND: dict[str, str] = {
    "cache.py": "mlx-lm leaves caches to its caller; in torch, transformers' paged cache is the engine's own",
    "paged_cache.py": "… and has other names and shapes from one version of transformers to the next",
    "packed.py": "mlx-lm's batches keep an axis for sequences; transformers' lie in one row, which attention must part again",
    "devices/__init__.py": "a room of what follows",
    "devices/choice.py": "MLX sees one device; torch may see several GPUs",
    "devices/placed.py": "… over which a model's layers can lie",
    "devices/spread_cache.py": "… and the engine's keys and values with them",
    "linear.py": "torch takes a slow library for float32 on some CPUs; MLX has one of its own",
    "experts.py": "MLX's product of experts knows float32 alone on the CPU; transformers has another one to choose",
    "mends.py": "transformers' code is the meaning itself; mlx-lm's parts from it in places",
    "kept_keys.py": "… where attention is given the keys that it keeps",
    "module_states.py": "… and some architectures leave states in their modules",
    "raw_rows.py": "… or compute a token in other modules than a prompt",
    "stacked.py": "… and batches of what it refuses are of its own caches, which nobody has made to be joined",
    "pickled.py": "pytorch_model.bin is torch's own format; its tensors are written as safetensors before MLX loads them",
    "forward.py": "MLX computes later than it is asked, so its engine keeps forwards that nobody has read yet",
}
"""Path below backends/torch or backends/mlx -> why the other has no such file."""


def test_no_file_is_too_long(root: Path, package_sources: list[Path]) -> None:
    lengths = {path: len((root / path).read_text().splitlines()) for path in package_sources}
    assert {str(path): n for path, n in lengths.items() if n > MAX_LINES} == {}, "split it: one noun a file"


def test_no_folder_holds_too_many_files(package_sources: list[Path]) -> None:
    counts = Counter(path.parent.as_posix() for path in package_sources)
    assert {folder: n for folder, n in counts.items() if n > MAX_FILES} == {}


def test_every_file_is_named_for_a_noun(package_sources: list[Path]) -> None:
    assert [str(path) for path in package_sources if path.name in VAGUE_NAMES] == []


def test_the_package_root_has_no_init(root: Path) -> None:
    assert not (root / "__init__.py").exists(), "the front door is probewire.clients"


def test_torch_and_mlx_hold_the_same_files(package_sources: list[Path]) -> None:
    torch_files, mlx_files = (_below(Path("backends", name), package_sources) for name in ("torch", "mlx"))
    if torch_files and mlx_files:
        assert (torch_files ^ mlx_files) - set(ONLY_IN_ONE_BACKEND) == set()
        assert set(ONLY_IN_ONE_BACKEND) <= torch_files ^ mlx_files, "an exception that is no longer one"


def _below(folder: Path, paths: list[Path]) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in paths if path.is_relative_to(folder)}
