"""What is no checkpoint of a causal language model is refused in one line that says why, on both backends."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import T5Config, T5ForConditionalGeneration, __version__ as transformers_version

from probewire.backends import load_backend
from probewire.backends.model.limits import Limits
from probewire.protos.errors import InvalidArgument
from tests.backends.derived import write
from tests.tiny_models import tiny_checkpoint

OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32}
BACKENDS = pytest.mark.parametrize("library", ["torch", "mlx"])


def _refusal(library: str, folder: Path) -> str:
    with pytest.raises(InvalidArgument) as refused:
        load_backend(library, folder, model_id="x", limits=Limits(n_slots=2, context_tokens=64), device="cpu")
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 500
    return refused.value.message


def _llama(folder: Path, **changes: Any) -> Path:
    copied = shutil.copytree(tiny_checkpoint("llama", folder), folder / "copy")  # the tiny one is everybody's
    return _changed(Path(copied), **changes)


def _changed(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def _mamba_called_mamba2(folder: Path) -> Path:
    return _changed(write("mamba", folder, hidden_size=64, num_hidden_layers=2, state_size=8), model_type="mamba2")


def _t5(folder: Path) -> Path:
    T5ForConditionalGeneration(
        T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    ).save_pretrained(folder)
    return folder


_CODE = {"AutoConfig": "configuration_blorp.BlorpConfig", "AutoModelForCausalLM": "modeling_blorp.Blorp"}
_UNKNOWN = f"'blorp' is not known to the installed transformers {transformers_version}, and code .* is never run"


@BACKENDS
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_mamba_called_mamba2, r"config\.json .* is not one of a mamba2 model: .*hidden_size \* expand"),
        (lambda folder: _llama(folder, num_attention_heads=5), r"not one of a llama model: .* not a multiple"),
        (lambda folder: _llama(folder, model_type="blorp"), _UNKNOWN),
        (lambda folder: _llama(folder, model_type="blorp", auto_map=_CODE), _UNKNOWN),
        (_t5, "t5 is an encoder-decoder"),
        (
            lambda folder: _llama(folder, intermediate_size=16),
            r"holds model\.layers\.0\.mlp\.\w+_proj\.weight as \[\d+, \d+\], but under its config\.json it is \[(16, \d+|\d+, 16)\]",
        ),
        (
            lambda folder: _llama(folder, num_hidden_layers=1),
            r"holds \d+ weights that llama has no place for .* for example \['model\.layers\.1\.[^]]*'\]; take the config\.json",
        ),
    ],
    ids=["mamba2", "heads", "unknown", "own code", "t5", "shapes", "layers"],
)
def test_a_config_that_does_not_fit(library: str, make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    assert re.search(said, _refusal(library, make(tmp_path)))


def test_what_is_no_language_model(tmp_path: Path) -> None:
    write("opt", tmp_path, **OPT)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert "vit is not a causal language model" in _refusal("torch", tmp_path)


def test_what_mlx_lm_has_no_code_for(tmp_path: Path) -> None:
    folder = write("opt", tmp_path, **OPT)
    assert "has no code for opt; load it with the torch backend" in _refusal("mlx", folder)
