"""What the reference refuses to read rather than read wrongly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from probewire.backends.reference import load
from probewire.protos.errors import InvalidArgument, ProbewireError, Unsupported
from tests.tiny_models import FAMILIES, tiny_checkpoint


def copy_with(tmp_path: Path, family: str = "llama", drop: str = "", **config: Any) -> Path:
    """A tiny checkpoint whose config says something else."""
    folder = tmp_path / "changed"
    shutil.copytree(tiny_checkpoint(family, tmp_path), folder)
    written = {**json.loads((folder / "config.json").read_text()), **config}
    written.pop(drop, None)
    (folder / "config.json").write_text(json.dumps(written))
    return folder


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ({"model_type": "mamba"}, Unsupported, "model_type 'mamba'"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, Unsupported, "quantization_config"),
        ({"hidden_act": "quick_gelu"}, Unsupported, "quick_gelu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, Unsupported, "dynamic"),
        ({"rope_scaling": {"rope_type": "linear"}}, InvalidArgument, "no factor"),
        ({"drop": "rms_norm_eps"}, InvalidArgument, "no rms_norm_eps"),
        ({"num_hidden_layers": 2}, Unsupported, "model.layers.2"),
        ({"family": "gemma2", "drop": "attn_logit_softcapping"}, InvalidArgument, "attn_logit_softcapping"),
    ],
)
def test_refusals(tmp_path: Path, config: dict[str, Any], error: type[ProbewireError], said: str) -> None:
    with pytest.raises(error, match=said):
        load(copy_with(tmp_path, **config))


def test_a_weight_that_no_one_reads(tmp_path: Path) -> None:
    folder = copy_with(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.layers.0.extra.weight": np.ones(2)}, folder / "model.safetensors")
    with pytest.raises(Unsupported, match=r"model\.layers\.0\.extra"):
        load(folder)


def test_an_untied_model_needs_its_head(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="lm_head"):
        load(copy_with(tmp_path, "qwen2", tie_word_embeddings=False))


def test_a_head_in_the_file_counts_whatever_the_config_says(tmp_path: Path) -> None:
    folder = copy_with(tmp_path, tie_word_embeddings=True)
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(load(folder).unembedding.weight.T, head)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_dialects_of_the_config_mean_the_same(tmp_path: Path, family: str) -> None:
    tokens = list(range(40, 70))
    old, new = (load(tiny_checkpoint(family, tmp_path, config_format=name)) for name in ("hub", "transformers5"))
    np.testing.assert_array_equal(old.forward(tokens), new.forward(tokens))
