"""Architectures that no row describes: what their raw modules show is what transformers' own eager forward computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from probewire.backends import load_backend
from probewire.backends.model.limits import Limits
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from probewire.protos.spec import Capture, Hook, Plan
from tests.backends.derived import write
from tests.parity.harness import run, sequence
from tests.tiny_models import tiny_checkpoint

LIMITS = Limits(n_slots=2, context_tokens=64, cache_tokens=256, chunk_tokens=8)
TOKENS, OTHER = list(range(10, 26)), list(range(30, 60))
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    # transformers builds no mask for these when told "sdpa"
    "gptj": ("transformer.h.1", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}),
    "codegen": ("transformer.h.1", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}),
    "bloom": ("transformer.h.1", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "xglm": ("model.layers.1", {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96}),
    "mpt": ("transformer.blocks.1", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
    # and the fused kernel drops their sinks
    "granite_swa": ("model.layers.1", {**SIZES, "sliding_window": 8}),
    "gpt_neox": ("gpt_neox.layers.1", SIZES),
    "mixtral": ("model.layers.1", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("model.layers.1", SIZES),
    "granite": ("model.layers.1", {**SIZES, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "cohere": ("model.layers.1", SIZES),
    "mamba": ("backbone.layers.1", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
}


def _eager(folder: Path, module: str) -> np.ndarray[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    got: list[torch.Tensor] = []
    model.get_submodule(module).register_forward_hook(
        lambda _, __, out: got.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        model(torch.tensor([TOKENS]), use_cache=False)
    return got[0].reshape(len(TOKENS), -1).numpy()


def _load(folder: Path, name: str = "torch") -> Any:
    return load_backend(name, folder, model_id="tiny", limits=LIMITS, dtype="float32", device="cpu")


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_raw_modules_show_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    module, fields = ARCHITECTURES[kind]
    backend = _load(write(kind, tmp_path, **fields))
    name = f"module:{module}:output"
    plan = Plan((Hook(name, capture=Capture()),))
    expected = _eager(tmp_path, module)
    alone = run(backend, TOKENS, plan)[0, name, ""].values
    beside = (
        backend.run([sequence(backend, OTHER, plan, name="long"), sequence(backend, TOKENS, plan)])[1].rows[0].values[0]
    )
    for found in (alone, beside):
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    backend.close()


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])
def test_hidden_states_of_mamba_begin_behind_the_first_layer(kind: str, tmp_path: Path) -> None:
    """As docs/defaults.md says of transformers' own."""
    folder = write(kind, tmp_path, hidden_size=64, num_hidden_layers=3, state_size=8)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        own = model(torch.tensor([TOKENS]), use_cache=False, output_hidden_states=True).hidden_states
    backend = _load(folder)
    names = ["resid_post.0", "resid_post.1", "resid_post.2", "final_norm"]
    rows = run(backend, TOKENS, Plan(tuple(Hook(name, capture=Capture()) for name in names)))
    assert len(own) == len(names)
    for index, (name, expected) in enumerate(zip(names, own, strict=True)):
        found = rows[index, name, ""].values
        assert np.abs(found - expected[0].numpy()).max() <= 1e-5 * np.abs(found).max(), name
    backend.close()


@pytest.mark.parametrize("beside", [{}, {"use_bidirectional_attention": True}])
def test_what_is_not_causal_is_refused(beside: dict[str, Any], tmp_path: Path) -> None:
    if beside:
        write("gemma3_text", tmp_path, **SIZES, head_dim=16, sliding_window=8, **beside)
    else:
        write("bert", tmp_path, **{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}, is_decoder=True)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "is_decoder": False}))
    with pytest.raises(InvalidArgument, match="causal"):
        _load(tmp_path)


def test_two_heads_in_one_file_mean_the_same_on_both_backends(tmp_path: Path) -> None:
    """The config ties the embeddings, and the file holds another lm_head: the file counts, in `weights` too."""
    folder = tiny_checkpoint("llama", tmp_path, tie_word_embeddings=False, seed=5)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    plan = Plan((Hook("logits", capture=Capture()), Hook("final_norm", capture=Capture())))
    found = [_load(folder, name) for name in ("torch", "mlx")]
    for backend in found:
        rows = run(backend, TOKENS, plan)
        expected = rows[1, "final_norm", ""].values @ backend.weight("lm_head.weight").T
        assert np.abs(rows[0, "logits", ""].values - expected).max() <= 1e-4 * np.abs(expected).max()
        backend.close()


def test_weights_without_a_place_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write("llama", tmp_path, **SIZES)
    weights = load_file(folder / "model.safetensors")
    old = {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    _load(folder).close()  # what follows from the config is no surprise
    biases = {f"model.layers.{i}.self_attn.q_proj.bias": torch.randn(64) for i in range(2)}
    save_file({**weights, **biases}, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("torch", "mlx"):
        with pytest.raises(InvalidArgument, match=r"q_proj\.bias"):
            _load(folder, name)


def test_an_adapter_beside_a_model_is_refused(tmp_path: Path) -> None:
    folder = write("llama", tmp_path, **SIZES)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.2-1B", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    for name in ("torch", "mlx"):
        with pytest.raises(InvalidArgument, match="a whole model and an adapter"):
            _load(folder, name)


@pytest.mark.parametrize("error", [ImportError("needs optimum"), OSError("no such file"), AttributeError("no heads")])
def test_what_libraries_raise_is_told_as_the_checkpoints(error: Exception, tmp_path: Path, monkeypatch: Any) -> None:
    def breaks(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("probewire.backends.torch.backend.load_model", breaks)
    with pytest.raises((InvalidArgument, FailedPrecondition), match=str(error)):
        _load(write("llama", tmp_path, **SIZES))


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_longrope_ends_at_the_original_length(name: str, tmp_path: Path) -> None:
    """Past it transformers changes the frequencies of a whole batch: a neighbour's length would change everyone's numbers."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    folder = tiny_checkpoint(
        "phi3",
        tmp_path,
        original_max_position_embeddings=32,
        rope_parameters={**rope, "original_max_position_embeddings": 32},
    )
    backend = _load(folder, name)
    assert backend.info.context_length == 32
    assert "longrope" in backend.info.context_note or "rotary frequencies" in backend.info.context_note
    backend.close()
