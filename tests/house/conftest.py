"""What the house tests share: where the tree is, and which of its folders are the package."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

NOT_PACKAGED = {"benchmarks", "build", "dist", "docs", "examples", "shared", "tests", "tools"}
"""Folders at the root that hold no part of the package."""


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def package_folders() -> list[Path]:
    """Every folder of the package, nested ones too, as paths relative to the root."""
    tops = [p for p in ROOT.iterdir() if p.is_dir() and p.name not in NOT_PACKAGED and not p.name.startswith(".")]
    modules = {module.parent.relative_to(ROOT) for top in tops for module in top.rglob("*.py")}
    parents = {parent for folder in modules for parent in folder.parents if parent != Path()}
    return sorted(modules | parents)


@pytest.fixture(scope="session")
def package_sources(package_folders: list[Path]) -> list[Path]:
    """Every hand-written module of the package, as paths relative to the root."""
    modules = (module for folder in package_folders for module in (ROOT / folder).glob("*.py"))
    return sorted(module.relative_to(ROOT) for module in modules if "_pb2" not in module.name)
