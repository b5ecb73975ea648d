"""Builds the documentation into build/docs/site: the pages of docs/, the README and its neighbours, and the docstrings.

MkDocs wants all its pages under one folder. They are copied as they lie in the repository, so that a link which works
there works here; so are the files that they link to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "docs"
PACKAGES = ("protos", "backends", "server", "clients", "analysis", "agents", "cli")
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/RESULTS.md")
_LINK = re.compile(r"\]\(([^)#\s]+)")

REFERENCE = {
    "clients": ("What a notebook imports", ("probewire.clients",)),
    "analysis": (
        "Analyses",
        tuple(
            f"probewire.analysis.{name}"
            for name in (
                *("tasks", "attribution", "ablation", "circuits", "library", "features", "plots"),
                *("variants", "editing", "steering", "reports", "datasets"),
            )
        ),
    ),
    "tuning": ("Fine-tuning", ("probewire.analysis.tuning",)),
    "saes": ("Sparse autoencoders", ("probewire.analysis.sae",)),
    "contract": (
        "The contract's values",
        tuple(
            f"probewire.protos.{name}"
            for name in (
                *("sites", "hooks", "edits", "latents", "metrics", "model", "gradients", "sweeps", "saes", "sessions"),
                *("activity", "loading", "errors", "operations", "service"),
            )
        ),
    ),
    "server": (
        "The server",
        ("probewire.server.config", "probewire.server.service", "probewire.server.worker.inprocess"),
    ),
    "backends": (
        "Backends",
        ("probewire.backends", "probewire.backends.hooks.base", "probewire.backends.hooks.sequence"),
    ),
}
"""Page → its title and the modules whose docstrings it shows."""


def stage() -> None:
    """Lay the pages out under build/docs/source, and the packages where the docstrings' reader finds them."""
    shutil.rmtree(BUILD, ignore_errors=True)
    source, packages = BUILD / "source", BUILD / "packages" / "probewire"
    pages = [*PAGES, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    for page in pages:
        _copy(page, source)
        for link in _LINK.findall((ROOT / page).read_text()):
            if "://" not in link and not link.startswith("mailto:"):
                _copy(os.path.normpath(Path(page).parent / link), source)
    llms = (ROOT / "docs" / "llms.txt").read_text()
    # Agents look for it at the site's root, and follow its links from there.
    (source / "llms.txt").write_text(
        _LINK.sub(lambda m: f"]({os.path.normpath(Path('docs') / m[1]).replace('.md', '.html')}", llms)
    )
    reference = source / "reference"
    reference.mkdir()
    for name, (title, modules) in REFERENCE.items():
        sections = "\n\n".join(f"::: {module}" for module in modules)
        (reference / f"{name}.md").write_text(f"# {title}\n\n{sections}\n")
    packages.mkdir(parents=True)
    for package in PACKAGES:
        (packages / package).symlink_to(ROOT / package)


def _copy(name: str, into: Path) -> None:
    """A file of the repository; one that is not there is left for MkDocs to complain of."""
    if (ROOT / name).is_file():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, into / name)


if __name__ == "__main__":
    stage()
    config = str(Path(__file__).with_name("mkdocs.yml"))
    sys.exit(
        subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config], check=False).returncode
    )
