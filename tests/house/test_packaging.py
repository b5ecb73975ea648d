"""The wheel holds the whole package and nothing else, and asks for what it needs."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOR_EVERYONE = {"clients", "protos"}
"""Folders that a plain `pip install probewire` must be able to import."""


@pytest.fixture(scope="module")
def wheel_names(root: Path, package_folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What a wheel built from a clean copy of the tree holds (in place, build/lib would add files deleted since)."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    for top in {folder.parts[0] for folder in package_folders} | {"tests"}:
        shutil.copytree(root / top, copy / top, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    built = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_holds_only_probewire(wheel_names: set[str]) -> None:
    assert {re.sub(r"-[\d.]+\.dist-info$", ".dist-info", name.split("/")[0]) for name in wheel_names} == {
        "probewire",
        "probewire.dist-info",
    }
    assert "probewire/__init__.py" not in wheel_names
    assert not any(name.startswith("probewire/tests/") for name in wheel_names)


def test_wheel_misses_no_file(root: Path, package_folders: list[Path], wheel_names: set[str]) -> None:
    """Stubs, .proto files and py.typed included: whatever lies below a folder of the package ships."""
    tops = {root / folder.parts[0] for folder in package_folders}
    files = {path.relative_to(root) for top in tops for path in top.rglob("*") if path.is_file()}
    ours = {path for path in files if not any(part.startswith((".", "__pycache__")) for part in path.parts)}
    expected = {f"probewire/{path.as_posix()}" for path in ours}
    packed = {name for name in wheel_names if name.startswith("probewire/")}
    assert expected - packed == set(), "list the folder or the kind of file under [tool.setuptools] in pyproject.toml"
    assert packed - expected == set()


def test_every_package_is_listed_and_typed(root: Path, package_folders: list[Path], pyproject: dict[str, Any]) -> None:
    listed = pyproject["tool"]["setuptools"]["packages"]
    assert sorted(listed) == [f"probewire.{'.'.join(folder.parts)}" for folder in package_folders]
    for folder in package_folders:
        assert (root / folder / "__init__.py").is_file(), f"{folder} has no __init__.py"
        assert (root / folder / "py.typed").is_file(), f"{folder} has no py.typed"


def test_clients_need_no_extra(root: Path, package_sources: list[Path], pyproject: dict[str, Any]) -> None:
    """A notebook installs probewire with no extra, so what protos/ and clients/ import is among the dependencies."""
    declared = {canonicalize_name(Requirement(line).name) for line in pyproject["project"]["dependencies"]}
    distributions = packages_distributions()
    for path in (path for path in package_sources if path.parts[0] in FOR_EVERYONE):
        for name in _absolute_imports(root / path) - sys.stdlib_module_names:
            owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
            assert owners & declared, f"{path} imports {name}, which no base dependency brings"


def test_constraints_pin_every_dependency_in_range(root: Path, pyproject: dict[str, Any]) -> None:
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(r.name): r for r in map(Requirement, (x for x in lines if x and x[0] != "#"))}
    extras = pyproject["project"]["optional-dependencies"].values()
    for line in [*pyproject["project"]["dependencies"], *(line for extra in extras for line in extra)]:
        declared = Requirement(line)
        pin = pins.get(canonicalize_name(declared.name))
        assert pin is not None, f"constraints.txt does not pin {declared.name}"
        (version,) = (s.version for s in pin.specifier)
        assert version in declared.specifier, f"constraints.txt pins {pin}; pyproject.toml asks for {declared}"


def _absolute_imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.split(".")[0] for name in names}
