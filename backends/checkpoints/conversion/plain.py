"""Writers of what holds plain floats already: pickles, and an adapter beside its base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....protos.errors import Unsupported
from ..agreement import check_layers
from ..folder import inspect_folder, read_config
from ..progress import Report
from .adapter import merged
from .bin import PickledTensors, bin_paths, bin_plan, check_complete, check_listed
from .kind import quantization_of
from .source import FileTensors
from .texts import copy_texts, has_tokenizer
from .write import write_weights

__all__ = ["STORES_TRANSPOSED", "config_dtype", "write_adapted", "write_config", "write_pickled"]

STORES_TRANSPOSED = ("gpt2", "openai-gpt")
"""Architectures whose matrices transformers stores [in, out] (its Conv1D); all others have [out, in]."""


def write_pickled(source: Path, out: Path, dtype: str, report: Report) -> None:
    """The folder of a pytorch_model.bin. Raises InvalidArgument where weights of its architecture are missing."""
    config = read_config(source)
    tensors = PickledTensors(bin_paths(source))
    check_listed(source, tensors.stored)
    check_layers(source, config, tensors.stored)
    write_config(out, config, dtype)
    copy_texts(source, out)
    write_weights(out, bin_plan(tensors, dtype), report)
    check_complete(source, out)


def write_adapted(source: Path, base: Path, out: Path, dtype: str, report: Report) -> None:
    """The folder of an adapter and its base together. The adapter's own tokenizer counts, where it has a whole one."""
    checked = inspect_folder(base)
    config = checked.config
    stored = quantization_of(base, config) or config.get("quantization")
    if stored:
        raise Unsupported(
            f"the base in {base} is quantised ({stored.get('quant_method', 'by mlx')}), and an adapter is merged into plain "
            "weights; give the base before it was quantised (`probewire convert … --base …`)"
        )
    result = merged(
        source,
        FileTensors.of(base),
        keep=dtype,
        tied=config.get("tie_word_embeddings") is not False,
        transposed=config["model_type"] in STORES_TRANSPOSED,
    )
    if result.own_head:
        config = {**config, "tie_word_embeddings": False}
    if result.vocab is not None:
        config = {**config, "vocab_size": result.vocab}
    write_config(out, config, dtype)
    if has_tokenizer(source):
        copy_texts(source, out)
    copy_texts(base, out)
    write_weights(out, result.plan, report)


def write_config(out: Path, config: Mapping[str, Any], dtype: str) -> None:
    """config.json without what it says of packing, and with the dtype of what is written."""
    plain = _without_packing(config)
    if dtype != "auto":
        for place in (plain, plain.get("text_config")):
            if isinstance(place, dict):
                _set_dtype(place, dtype)
    (out / "config.json").write_text(json.dumps(plain, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def config_dtype(config: Mapping[str, Any]) -> str:
    """The dtype that a config names, as a wire name; empty where it names none."""
    for place in (config, config.get("text_config") or {}):
        name = str(place.get("dtype") or place.get("torch_dtype") or "").removeprefix("torch.")
        if name in ("float32", "float16", "bfloat16", "float64"):
            return name
    return ""


def _set_dtype(place: dict[str, Any], dtype: str) -> None:
    names = [name for name in ("dtype", "torch_dtype") if name in place] or ["dtype"]
    place.update(dict.fromkeys(names, dtype))


def _without_packing(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in ("quantization_config", "compression_config")}
    if isinstance(kept.get("text_config"), dict):
        kept["text_config"] = _without_packing(kept["text_config"])
    return kept
