"""What is no SAE, or none for this site, is refused with the reason and the fix."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from probewire.backends.model import footprint
from probewire.backends.saes import read_folder, source_of_files
from probewire.protos.errors import FailedPrecondition, InvalidArgument, NotFound
from probewire.protos.model import ModelInfo, SiteInfo
from tests.saes import write_sae

SITES = (
    SiteInfo("resid_post", ("pos", "d_model"), (64,), (0, 1, 2), edits=("latents",)),
    SiteInfo("z", ("pos", "head", "d_head"), (4, 16), (0, 1, 2), edits=("latents",)),
    SiteInfo("mlp_act", ("pos", "d_mlp"), (96,), (0, 1, 2), edits=("latents",)),
    SiteInfo("attn_probs", ("head", "query", "key"), (4, 0), (0, 1, 2), edits=("scale",)),
)
INFO = ModelInfo("m", "llama", "llama", "torch", "cpu", "float32", "sdpa", "h", 3, 64, 4, 2, 16, 96, 261, sites=SITES)


def load(folder: Path, site: str = "", dtype: str = "auto") -> Any:
    return read_folder(folder, 1 << 20).load("a", site, dtype, INFO)


def with_weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        arrays = dict(load_file(folder / "sae_weights.safetensors"))
        change(arrays)
        save_file(arrays, folder / "sae_weights.safetensors")

    return apply


def with_config(**change: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps({**config, **change}))

    return apply


def nan_weights(arrays: dict[str, Any]) -> None:
    arrays["W_dec"][3, 4] = np.nan


def pickled(folder: Path) -> None:
    (folder / "sae_weights.safetensors").write_bytes(pickle.dumps({"W_enc": [1.0]}))


def only_a_pickle(folder: Path) -> None:
    (folder / "sae_weights.safetensors").unlink()
    (folder / "ae.pt").write_bytes(pickle.dumps({}))


def of_old(**change: Any) -> Callable[[Path], None]:
    """A config of sae-lens 3, of a standard SAE."""

    def apply(folder: Path) -> None:
        old = {
            "architecture": "standard",
            "d_in": 64,
            "d_sae": 96,
            "dtype": "torch.float32",
            "device": "cuda",
            "hook_point": "blocks.1.hook_resid_post",
            "hook_point_layer": 1,
            "hook_point_head_index": None,
            "activation_fn_str": "relu",
            "activation_fn_kwargs": {},
            "normalize_activations": "none",
            "finetuning_scaling_factor": False,
            "noise_scale": 0.0,
            "sae_lens_training_version": None,
        }
        (folder / "cfg.json").write_text(json.dumps({**old, **change}))

    return apply


def unfinished(folder: Path) -> None:
    """As a checkpoint of sae-lens's trainer lies there."""
    with_config(normalize_activations="expected_average_only_in")(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.02, "has_whitening": False}))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "NaN": (with_weights(nan_weights), "W_dec holds NaN"),
    "a pickle under the name": (pickled, "pickles are never opened"),
    "a pickle beside": (only_a_pickle, "ae.pt may be a pickle, which is never opened"),
    "no config": (lambda folder: (folder / "cfg.json").unlink(), "has no cfg.json"),
    "a config that is none": (lambda folder: (folder / "cfg.json").write_text("[1]"), "must hold an object"),
    "broken JSON": (lambda folder: (folder / "cfg.json").write_text("{"), "is not JSON"),
    "another architecture": (with_config(architecture="temporal"), "allowed: standard, topk, jumprelu, gated"),
    "a width that lies": (with_config(d_sae=12), "its config says d_in, d_sae"),
    "no k": (with_config(k=0), "k of a topk SAE must be in 1 … 96"),
    "a k beyond": (with_config(k=97), "k of a topk SAE"),
    "another norm": (with_config(normalize_activations="whiten"), "normalize_activations 'whiten'"),
    "not finished": (unfinished, "is not finished: it reads activations that training had scaled"),
    "not whitened": (with_config(normalize_activations="covariance_whitening"), "sae.fold_activation_whitening"),
    "not finished, of old": (of_old(normalize_activations=True), "(expected_average_only_in)"),
    "another activation": (of_old(activation_fn_str="tanh-relu"), "activation_fn 'tanh-relu'; allowed: relu"),
    "another activation, of late": (with_config(activation_fn="gelu"), "activation_fn 'gelu'; allowed: relu"),
    "top-k of nothing": (of_old(activation_fn_str="topk", activation_fn_kwargs=None), "activation_fn 'topk'"),
    "more of an activation": (of_old(activation_fn_kwargs={"k": 6, "leak": 0.1}), "activation_fn_kwargs leak"),
    "a finetuned scale": (
        with_weights(lambda arrays: arrays.update(scaling_factor=np.full(96, 1.2, "float32"))),
        "has a finetuned scaling_factor",
    ),
    "a field of tomorrow": (with_config(post_scale=2.0), "does not know (post_scale)"),
    "a bias by halves": (with_config(apply_b_dec_to_input=0.5), "apply_b_dec_to_input 0.5; allowed: true, false"),
    "norms of another": (
        with_config(architecture="standard", rescale_acts_by_decoder_norm=True),
        "rescale_acts_by_decoder_norm, which only topk SAEs do",
    ),
    "a head alone": (
        with_config(metadata={"hook_name": "resid_post.1", "sae_lens_version": "6.0.0", "hook_head_index": 3}),
        "reads head 3 alone",
    ),
    "a dtype that is none": (with_config(dtype="int8"), "its config says dtype 'int8'"),
    "no bias": (with_weights(lambda arrays: arrays.pop("b_enc")), "has no b_enc"),
    "a bias too short": (with_weights(lambda arrays: arrays.update(b_enc=np.zeros(5, "float32"))), "b_enc has shape"),
    "more than it uses": (with_weights(lambda arrays: arrays.update(r=np.zeros(5, "float32"))), "does not use (r)"),
    "integers": (with_weights(lambda arrays: arrays.update(b_enc=np.zeros(96, "int32"))), "b_enc has dtype I32"),
    "processed weights": (
        with_config(metadata={"hook_name": "resid_post.1", "model_from_pretrained_kwargs": {"fold_ln": True}}),
        "whose weights TransformerLens had processed (fold_ln)",
    ),
    "no latents": (
        with_weights(lambda arrays: arrays.update(W_enc=np.zeros((64, 0), "float32"))),
        "is empty: its W_enc is [64, 0]",
    ),
    "no site": (with_config(metadata={}), "does not say where it reads"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str, tmp_path: Path) -> None:
    spoil, reason = BAD[name]
    folder = write_sae(tmp_path / "sae", "topk")
    spoil(folder)
    with pytest.raises(InvalidArgument) as refused:
        load(folder)
    assert reason in refused.value.message


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        ("mlp_act.1", "reads rows 64 wide, mlp_act.1 of m is 96 wide"),
        ("attn_probs.1", "no SAE can be loaded onto attn_probs.1; allowed kinds of site: resid_post, z, mlp_act"),
        ("resid_post.*", "one site, not 'resid_post.*'"),
        ("resid_post.7", "7"),
        ("nowhere.1", "nowhere"),
    ],
)
def test_a_site_that_it_does_not_fit(site: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as refused:
        load(write_sae(tmp_path / "sae"), site)
    assert reason in refused.value.message


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="not there on the server"):
        load(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFound, match="a file, not a folder"):
        load(tmp_path / "file")


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="at most 100 are allowed"):
        read_folder(write_sae(tmp_path / "sae"), 100)


def test_what_a_dtype_would_take_is_known_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = read_folder(write_sae(tmp_path / "sae"), 100_000)  # 50 kB
    assert source.load("a", "", "auto", INFO, 60_000).dtype == "float32"
    with pytest.raises(InvalidArgument, match=r"takes [\d,]+ bytes in float64; at most 60,000 fit"):
        source.load("a", "", "float64", INFO, 60_000)
    monkeypatch.setattr(footprint, "free_bytes", lambda: 80_000)
    assert source.load("a", "", "bfloat16", INFO).dtype == "bfloat16"
    with pytest.raises(FailedPrecondition, match=r"in float64 takes about .* of memory, and .* are free"):
        source.load("a", "", "float64", INFO)


@pytest.mark.parametrize(
    ("told", "own"), [("blocks.1.hook_resid_post", "resid_post.1"), ("resid_post.2", "resid_post.2"), ("hook_foo", "")]
)
def test_where_it_was_trained(told: str, own: str, tmp_path: Path) -> None:
    assert load(write_sae(tmp_path / "sae", site=told), "resid_post.1").own_site == own


def test_weights_cut_short(tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    whole = (folder / "sae_weights.safetensors").read_bytes()
    source = source_of_files((folder / "cfg.json").read_bytes(), whole[:-10], "it")
    with pytest.raises(InvalidArgument, match="no safetensors file"):
        source.load("a", "", "auto", INFO)


def test_heads_are_read_flat(tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae", site="blocks.1.attn.hook_z", reshape_activations="hook_z")
    assert str(load(folder).site) == "z.1"
    with pytest.raises(InvalidArgument, match="load it onto z"):
        load(folder, "resid_post.1")


def test_a_config_from_before_version_6(tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    old = {
        "d_in": 64,
        "d_sae": 96,
        "hook_point": "blocks.2.hook_resid_post",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 9},
    }
    (folder / "cfg.json").write_text(json.dumps(old))
    sae = load(folder)
    assert (sae.architecture, sae.k, str(sae.site)) == ("topk", 9, "resid_post.2")


def test_dtypes(tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    assert load(folder, dtype="bfloat16").arrays["W_enc"].dtype == "bfloat16"
    with pytest.raises(InvalidArgument, match="allowed: auto"):
        load(folder, dtype="int8")


def test_numbers_beyond_a_dtype(tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    with_weights(lambda arrays: arrays.update(b_enc=np.full(96, 70_000, "float32")))(folder)
    assert load(folder).dtype == "float32"
    with pytest.raises(InvalidArgument, match="b_enc holds numbers beyond float16"):
        load(folder, dtype="float16")


def test_a_decoder_row_of_zeros_cannot_be_rescaled_by(tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae", "topk rescaled")

    def zero(arrays: dict[str, Any]) -> None:
        arrays["W_dec"][3] = 0

    with_weights(zero)(folder)
    with pytest.raises(InvalidArgument, match="some of these are zero"):
        load(folder)
