"""Merged checkpoints: transformers and mlx-lm load them and compute what base and variant compute; and back from two models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx_lm.utils import load_model
from safetensors.numpy import load_file, save_file

from probewire.backends.checkpoints import resolve_model
from probewire.backends.checkpoints.variants import difference, merge_variant
from probewire.protos.edits import Scale
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from probewire.protos.hooks import Hook
from probewire.protos.model_info import WeightInfo
from probewire.protos.spec import Plan
from probewire.protos.variants.delta import Delta
from probewire.protos.variants.manifest import Base, Manifest
from probewire.protos.variants.variant import Variant
from tests.tiny_models import tiny_checkpoint

IDS = [[5, 17, 200, 31, 8]]
RNG = np.random.default_rng(2)
LLAMA = (
    WeightInfo("w_q.0", "model.layers.0.self_attn.q_proj", 64, 64),
    WeightInfo("w_down.2", "model.layers.2.mlp.down_proj", 96, 64),
    WeightInfo("w_embed", "model.embed_tokens", 261, 64),
    WeightInfo("w_unembed", "lm_head", 64, 261),
)
GPT2 = (
    *(WeightInfo(f"{name}.0", "transformer.h.0.attn.c_attn", 64, 64) for name in ("w_q", "w_k", "w_v")),
    WeightInfo("w_down.2", "transformer.h.2.mlp.c_proj", 256, 64),
    WeightInfo("w_embed", "transformer.wte", 261, 64),
    WeightInfo("w_unembed", "lm_head", 64, 261),
)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, both of them: the known trap."""
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param), tie_word_embeddings=True)


def variant_of(base: Path, *, size: float = 0.1, names: tuple[str, ...] = ()) -> Variant:
    kind = json.loads((base / "config.json").read_text())["model_type"]
    table = GPT2 if kind == "gpt2" else LLAMA
    told = Base(id="tiny", model_hash=resolve_model(str(base)).model_hash, architecture=kind, weights=table)
    deltas = {
        weight.name: Delta(RNG.normal(size=(weight.d_in, 2)) * size, RNG.normal(size=(2, weight.d_out)) * size)
        for weight in table
        if not names or weight.name in names
    }
    return Variant(deltas, manifest=Manifest(name="made", base=told))


def logits(folder: Path, variant: Variant | None = None) -> Any:
    """transformers', with each delta added where the module computes."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    table = () if variant is None else variant.manifest.base.weights
    for name, delta in ({} if variant is None else variant.deltas).items():
        own = next(one for one in table if one.name == name)
        parts = [one for one in table if one.path == own.path]
        model.get_submodule(own.path).register_forward_hook(_adding(delta, 64 * parts.index(own), name == "w_embed"))
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def _adding(delta: Delta, start: int, lookup: bool) -> Any:
    a, b = torch.tensor(delta.a), torch.tensor(delta.b)

    def hook(_module: Any, args: Any, output: Any) -> Any:
        output = output.clone()
        output[..., start : start + delta.d_out] += (a[args[0]] if lookup else args[0] @ a) @ b
        return output

    return hook


def test_both_libraries_load_it_and_both_deltas_of_a_tied_matrix_survive(base: Path, tmp_path: Path) -> None:
    variant = variant_of(base)
    made = merge_variant(base, variant, tmp_path / "merged", cache_dir=tmp_path / "cache")
    assert max(made.lost.values()) < 1e-6
    config = json.loads((made.folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    expected = logits(base, variant)
    assert np.abs(expected - logits(base)).max() > 0.1
    np.testing.assert_allclose(logits(made.folder), expected, atol=1e-5 * np.abs(expected).max())
    if config["model_type"] != "gpt2":  # mlx-lm's gpt2 has no head of its own
        mlx = np.array(load_model(made.folder)[0](mx.array(IDS)))
        np.testing.assert_allclose(mlx, expected, atol=1e-4 * np.abs(expected).max())
    for name in ("w_embed", "w_unembed"):  # each alone moves the logits otherwise
        alone = merge_variant(base, variant.only(name), tmp_path / name, cache_dir=tmp_path / "cache").folder
        np.testing.assert_allclose(logits(alone), logits(base, variant.only(name)), atol=1e-4)


def test_a_tied_model_stays_tied_where_neither_is_changed(base: Path, tmp_path: Path) -> None:
    variant = variant_of(base, names=("w_down.2",))
    made = merge_variant(base, variant, tmp_path / "merged", cache_dir=tmp_path / "cache").folder
    expected = logits(base, variant)
    np.testing.assert_allclose(logits(made), expected, atol=1e-5 * np.abs(expected).max())
    mlx = np.array(load_model(made)[0](mx.array(IDS)))
    np.testing.assert_allclose(mlx, expected, atol=1e-4 * np.abs(expected).max())


def test_what_rounding_takes_away_is_told_and_bounded(base: Path, tmp_path: Path) -> None:
    """On weights that bfloat16 holds exactly, so that all that is lost is lost of the change."""
    exact = Path(shutil.copytree(base, tmp_path / "exact"))
    tensors = load_file(exact / "model.safetensors")
    rounded = {name: array.astype(ml_dtypes.bfloat16).astype(np.float32) for name, array in tensors.items()}
    save_file(rounded, exact / "model.safetensors", {"format": "pt"})
    faint = variant_of(exact, size=0.005, names=("w_down.2",))
    with pytest.raises(
        FailedPrecondition, match=r"rounding to bfloat16 would take away \d+% of the change at .*(c|down)_proj"
    ):
        merge_variant(exact, faint, tmp_path / "a", dtype="bfloat16", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "a").exists()
    forced = merge_variant(exact, faint, tmp_path / "b", dtype="bfloat16", force=True, cache_dir=tmp_path / "cache")
    [lost] = forced.lost.values()
    name = next(name for name in rounded if name.endswith(("layers.2.mlp.down_proj.weight", "h.2.mlp.c_proj.weight")))
    change = faint.dense("w_down.2") if "c_proj" in name else faint.dense("w_down.2").T
    gap = (rounded[name] + change).astype(ml_dtypes.bfloat16).astype(np.float32) - rounded[name] - change
    assert lost == pytest.approx(np.square(gap).sum() / np.square(change).sum(), rel=1e-3)


def test_another_base_and_hooks_are_refused(base: Path, tmp_path: Path) -> None:
    variant = variant_of(base)
    other = replace(variant.manifest, base=replace(variant.manifest.base, model_hash="cd" * 32))
    with pytest.raises(FailedPrecondition, match="is of model cdcdcdcdcdcdcdcd"):
        merge_variant(base, Variant(variant.deltas, manifest=other), tmp_path / "x", cache_dir=tmp_path / "cache")
    hooked = Variant(variant.deltas, Plan((Hook("mlp_out.0", Scale(0.5)),)), variant.manifest)
    with pytest.raises(InvalidArgument, match="drop_hooks"):
        merge_variant(base, hooked, tmp_path / "x", cache_dir=tmp_path / "cache")


def test_what_was_merged_is_found_as_a_difference(base: Path, tmp_path: Path) -> None:
    variant = variant_of(base, names=("w_q.0", "w_down.2"))
    made = merge_variant(base, variant, tmp_path / "merged", cache_dir=tmp_path / "cache").folder
    found = difference(base, made, energy=0.999999)
    assert not found.left
    modules = {
        "module:" + weight.path.removeprefix("transformer.")
        for weight in variant.manifest.base.weights
        if weight.name in variant.deltas
    }
    assert {name.replace("transformer.", "") for name in found.variant.deltas} == modules
    assert {delta.rank for delta in found.variant.deltas.values()} == {2}
    assert max(found.lost.values()) < 1e-5
    assert found.variant.manifest.base.model_hash == variant.manifest.base.model_hash
    total = sum(delta.norm() ** 2 for delta in variant.deltas.values())
    assert sum(delta.norm() ** 2 for delta in found.variant.deltas.values()) == pytest.approx(total, rel=1e-4)


def test_what_is_no_linear_weight_is_refused_unless_dropped(tmp_path: Path) -> None:
    base = tiny_checkpoint("llama", tmp_path / "base", tie_word_embeddings=True)
    tuned = Path(shutil.copytree(base, tmp_path / "tuned"))
    tensors = load_file(tuned / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.embed_tokens.weight"][7] += 1
    save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        InvalidArgument, match=r"1 tensors that a variant does not hold \(model\.norm\.weight by 50\.0%\)"
    ):
        difference(base, tuned)
    found = difference(base, tuned, drop=True)
    assert set(found.variant.deltas) == {"w_embed", "w_unembed"}  # one matrix, two names
    np.testing.assert_allclose(found.variant.dense("w_embed")[7], np.ones(64), atol=1e-5)
    np.testing.assert_allclose(found.variant.dense("w_unembed"), found.variant.dense("w_embed").T, atol=1e-6)
    assert found.left == {"model.norm.weight": pytest.approx(0.5)}
    with pytest.raises(InvalidArgument, match="nothing to write"):
        difference(base, base)
