"""Files from strangers: what is no safetensors file of floats is refused in words, whatever its bytes."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from probewire.protos.errors import InvalidArgument, ProbewireError
from probewire.protos.variants import tensor_file
from probewire.protos.variants.delta import Delta
from probewire.protos.variants.manifest import Manifest
from probewire.protos.variants.tensor_file import read_tensors, written_tensors
from probewire.protos.variants.variant import Variant


def file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def test_every_float_comes_back() -> None:
    arrays = {name: np.arange(6).reshape(2, 3).astype(name) for name in ("float64", "float32", "float16")}
    arrays["bfloat16"] = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    read = read_tensors(written_tensors(arrays, {"format": "x"}), "it")
    assert {name: (array.dtype, array.tolist()) for name, array in read.items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is no safetensors file"),
        (b"\x80\x04pickle!!", "is no safetensors file"),
        (file({"a": entry(0, 8)}, bytes(8))[:-1], "7 are there"),
        (file({"a": entry(0, 8)}, bytes(9)), "9 are there"),
        (file(b" " * ((2 << 20) - 2) + b"{}"), "a header of 2,097,152 bytes"),
        (file(b"[]"), "no object"),
        (file(b"{{"), "no JSON"),
        (file(b"\xff\xff"), "no JSON"),
        (file(b'{"a":1,"a":2}'), "twice"),
        (file(b"[" * 100_000), "no JSON"),
        (file({"a": entry(4, 8)}, bytes(8)), "begins at byte 4"),
        (file({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "begins at byte 4"),
        (file({"a": entry(-4, 4)}, bytes(8)), "no dtype, shape and data_offsets"),
        (file({"a": entry(8, 0, [0])}, bytes(8)), "its offsets say"),
        (file({"a": entry(0, 8, [-2])}, bytes(8)), "no dtype, shape"),
        (file({"a": entry(0, 8, [1.5])}, bytes(8)), "no dtype, shape"),
        (file({"a": entry(0, 8, [2**40, 2**40])}, bytes(8)), "its offsets say"),
        (file({"a": entry(0, 8, [1] * 60 + [2])}, bytes(8)), "its offsets say"),
        (file({"a": entry(0, 8, [1], "I64")}, bytes(8)), "is 'I64'; allowed: F64, F32, F16, BF16"),
        (file({"a": {"dtype": "F32"}}), "no dtype, shape"),
        (file({"a": 3}), "no dtype, shape"),
        (file({str(n): entry(4 * n, 4 * n + 4) for n in range(20_001)}, bytes(80_004)), "a header of|20,001 tensors"),
    ],
)
def test_what_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        read_tensors(data, "it")


def test_a_file_of_too_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of 1 MiB can hold 20,001 of them only with the shortest names."""
    monkeypatch.setattr(tensor_file, "MAX_TENSORS", 3)
    read_tensors(file({str(n): entry(4 * n, 4 * n + 4) for n in range(3)}, bytes(12)), "it")
    with pytest.raises(InvalidArgument, match="holds 4 tensors; at most 3"):
        read_tensors(file({str(n): entry(4 * n, 4 * n + 4) for n in range(4)}, bytes(16)), "it")


def _adapter() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    one = Delta(rng.normal(size=(4, 2)), rng.normal(size=(2, 3)))
    return Variant({"module:model.layers.0.mlp.up_proj": one}, manifest=Manifest(name="x")).files()


FILES = _adapter()


@given(
    name=st.sampled_from(sorted(FILES)),
    edits=st.lists(
        st.tuples(st.integers(0, 4000), st.binary(min_size=0, max_size=6), st.integers(0, 6)), min_size=1, max_size=4
    ),
    drop=st.sampled_from([None, *sorted(FILES)]),
)
def test_mutated_files_are_read_or_refused_in_words(
    name: str, edits: list[tuple[int, bytes, int]], drop: str | None
) -> None:
    files = {key: value for key, value in FILES.items() if key != drop}
    data = FILES[name]
    for at, new, gone in edits:
        at %= len(data) + 1
        data = data[:at] + new + data[at + gone :]
    with contextlib.suppress(ProbewireError):
        assert Variant.of_files({**files, name: data}, "it").deltas


@settings(max_examples=60)  # a hundred take seconds
@given(st.dictionaries(st.sampled_from(["r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "bias", "use_dora",
                                        "init_lora_weights", "peft_type", "loftq_config", "x"]),
                       st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3))))  # fmt: skip
def test_any_config_is_read_or_refused_in_words(changes: dict[str, Any]) -> None:
    told = json.loads(FILES["adapter_config.json"]) | changes
    files = {
        "adapter_config.json": json.dumps(told).encode(),
        "adapter_model.safetensors": FILES["adapter_model.safetensors"],
    }
    with contextlib.suppress(ProbewireError):
        assert Variant.of_files(files, "it").deltas
