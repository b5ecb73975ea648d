"""Our encoding, decoding and sparse reading against sae-lens itself, on the same files."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from probewire.backends.mlx.ops import MlxOps
from probewire.backends.ops import Ops
from probewire.backends.saes import LatentMaths, Sae, latent_maths, read_folder
from probewire.backends.saes.config import HONOURED, METADATA, OF_OLD, WITHOUT_EFFECT
from probewire.backends.torch.ops import TorchOps
from probewire.protos.latents import LatentChange, Latents
from probewire.protos.model import ModelInfo, SiteInfo
from tests.saes import ARCHITECTURES, write_sae

TOLERANCE = 1e-6
"""Relative to the largest number."""
SITE = SiteInfo("resid_post", ("pos", "d_model"), (64,), (0, 1, 2), edits=("latents",))
INFO = ModelInfo("m", "llama", "llama", "torch", "cpu", "float32", "sdpa", "h", 3, 64, 4, 2, 16, 96, 261, sites=(SITE,))
ROWS = np.random.default_rng(1).standard_normal((40, 64)).astype(np.float32) * 3


@pytest.fixture(params=["torch", "mlx"])
def ops(request: pytest.FixtureRequest) -> Ops:
    return TorchOps(torch.device("cpu")) if request.param == "torch" else MlxOps()


def sae_lens() -> Any:
    """Imported late: it takes seconds, and has no types."""
    return import_module("sae_lens")


def opened(folder: Path) -> tuple[Sae, Any]:
    """Ours and theirs."""
    return read_folder(folder, 1 << 30).load("a", "", "auto", INFO), sae_lens().SAE.load_from_disk(str(folder))


def on_host(ops: Ops, tensor: Any) -> np.ndarray[Any, Any]:
    return ops.to_host([tensor])[0]


def close(found: Any, expected: Any) -> bool:
    return bool(np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_encode_and_decode(kind: str, ops: Ops, tmp_path: Path) -> None:
    sae, theirs = opened(write_sae(tmp_path / "sae", kind))
    maths = LatentMaths(ops)
    on, rows = maths.device(sae), ops.exact(ROWS)
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(ROWS))
        decoded = theirs.decode(expected).numpy()
    f = maths.encode(on, rows)
    assert close(on_host(ops, f), expected.numpy())
    assert ((on_host(ops, f) > 0) == (expected.numpy() > 0)).all()
    assert close(on_host(ops, maths.decode(on, f, rows)), decoded)
    ids = (0, 7, 50, 95)
    assert close(on_host(ops, maths.some(on, rows, ids)), expected.numpy()[:, ids])


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_sparse(kind: str, ops: Ops, tmp_path: Path) -> None:
    sae, theirs = opened(write_sae(tmp_path / "sae", kind))
    maths = LatentMaths(ops)
    sparse = maths.sparse(maths.device(sae), ops.exact(ROWS), 8)
    values, ids, count = (on_host(ops, part) for part in (sparse.values, sparse.ids, sparse.count))
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(ROWS)).numpy()
    assert ids.dtype == count.dtype == np.int32
    np.testing.assert_array_equal(count, (expected > 0).sum(axis=1))
    for row in range(len(ROWS)):
        listed = ids[row] >= 0
        assert listed.sum() == min(8, count[row])
        assert (values[row][~listed] == 0).all()
        assert close(values[row][listed], expected[row][ids[row][listed]])
        assert close(np.sort(values[row])[::-1], np.sort(expected[row])[::-1][:8])


def test_long_prompts_are_taken_in_parts(ops: Ops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, _ = opened(write_sae(tmp_path / "sae", "topk"))
    maths, edit = LatentMaths(ops), Latents("a", (LatentChange(7, set=2.0),))
    on, rows = maths.device(sae), ops.exact(ROWS)

    def found() -> list[Any]:
        sparse = maths.sparse(on, rows, 8)
        return [on_host(ops, x) for x in (sparse.values, sparse.ids, sparse.count, maths.edited(edit, on, rows))]

    whole = found()
    monkeypatch.setattr(latent_maths, "MAX_DENSE", 96 * 7)
    for part, expected in zip(found(), whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_edit_keeps_the_error(kind: str, ops: Ops, tmp_path: Path) -> None:
    sae, theirs = opened(write_sae(tmp_path / "sae", kind))
    maths, edit = LatentMaths(ops), Latents("a", (LatentChange(7, set=2.0), LatentChange(9, scale=0.0)))
    with torch.no_grad():
        f = theirs.encode(torch.from_numpy(ROWS))
        plain = theirs.decode(f)
        theirs.encode(torch.from_numpy(ROWS))  # decoding drops the normalisation that encoding left behind
        changed = f.clone()
        changed[:, 7], changed[:, 9] = 2.0, 0.0
        expected = ROWS + (theirs.decode(changed) - plain).numpy()
    found = on_host(ops, maths.edited(edit, maths.device(sae), ops.exact(ROWS)))
    assert close(found, expected)


OLD: dict[str, dict[str, Any]] = {
    "standard": {"activation_fn_str": "relu", "normalize_activations": False},
    "gated": {"architecture": "gated", "apply_b_dec_to_input": False, "normalize_activations": None},
    "jumprelu": {"architecture": "jumprelu", "activation_fn_kwargs": {}, "finetuning_scaling_factor": False},
    "topk": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6}, "architecture": "standard"},
    "layer norm": {"normalize_activations": "layer_norm", "sae_lens_training_version": "3.9.2"},
}
"""Configs of versions before 6: what they say of the numbers."""


@pytest.mark.parametrize("kind", OLD)
@pytest.mark.parametrize("scaled", [False, True])
def test_saes_of_another_age(kind: str, scaled: bool, ops: Ops, tmp_path: Path) -> None:
    """For a time sae-lens wrote a `scaling_factor` of ones beside the weights."""
    folder = write_sae(tmp_path / "sae", kind)
    told = {"d_in": 64, "d_sae": 96, "dtype": "torch.float32", "hook_point": "blocks.1.hook_resid_post", **OLD[kind]}
    if scaled:
        told["finetuning_scaling_factor"] = False
        arrays = load_file(folder / "sae_weights.safetensors")
        save_file({**arrays, "scaling_factor": np.ones(96, np.float32)}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(told))
    sae, theirs = opened(folder)
    assert str(sae.site) == "resid_post.1"
    _require_alike(ops, sae, theirs, TOLERANCE)


def _require_alike(ops: Ops, sae: Sae, theirs: Any, tolerance: float) -> None:
    maths = LatentMaths(ops)
    on, rows = maths.device(sae), ops.exact(ROWS)
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(ROWS))
        decoded = theirs.decode(expected).double().numpy()
    f, kept = maths.encode(on, rows), expected.double().numpy()
    for found, wanted in ((f, kept), (maths.decode(on, f, rows), decoded)):
        gap = np.abs(on_host(ops, found).astype(np.float64) - wanted).max()
        assert gap <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("told", "saved"),
    [
        ("float32", ml_dtypes.bfloat16),
        ("torch.float32", np.float16),
        ("bfloat16", np.float32),
        ("float16", np.float32),
        ("float64", np.float32),
    ],
)
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated"])
def test_the_config_says_in_which_dtype(kind: str, told: str, saved: Any, ops: Ops, tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae", kind, dtype=saved)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "dtype": told}))
    sae, theirs = opened(folder)
    assert sae.dtype == str(theirs.dtype).removeprefix("torch.") == told.removeprefix("torch.")
    for name in ("W_enc", "W_dec", "b_dec"):
        np.testing.assert_array_equal(
            sae.arrays[name].astype(np.float64), getattr(theirs, name).detach().double().numpy()
        )
    _require_alike(ops, sae, theirs, {"bfloat16": 1e-2, "float16": 2e-3}.get(sae.dtype, TOLERANCE))


def test_every_field_of_sae_lens_is_known(tmp_path: Path) -> None:
    """A new one must be looked at: honoured, refused, or found to change nothing."""
    registry: Any = import_module("sae_lens.registry")
    known = HONOURED | OF_OLD | METADATA | WITHOUT_EFFECT
    trained_as = {"standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk"}
    inference = [registry.SAE_CLASS_REGISTRY[name][1] for name in ("standard", "topk", "jumprelu", "gated")]
    training = [registry.SAE_TRAINING_CLASS_REGISTRY[name][1] for name in trained_as]
    for config in (*inference, *training):
        assert {field.name for field in fields(config)} <= known, config
    for config in inference:  # all that inference has may change numbers
        assert {field.name for field in fields(config)} - {"device"} <= HONOURED, config
    assert {"architecture"}.union(*({field.name for field in fields(config)} for config in inference)) >= HONOURED
    assert import_module("sae_lens.loading.pretrained_sae_loaders").LLM_METADATA_KEYS <= METADATA


def test_what_sae_lens_saves_and_what_we_keep(tmp_path: Path) -> None:
    """An SAE of sae-lens's own making, with everything that its save_model writes."""
    torch.manual_seed(0)
    config = sae_lens().TopKSAEConfig(d_in=64, d_sae=128, k=4)
    config.metadata.hook_name = "blocks.2.hook_resid_post"
    made = sae_lens().TopKSAE(config)
    made.save_model(tmp_path / "saved")
    sae, _ = opened(tmp_path / "saved")
    assert (str(sae.site), sae.k, sae.d_sae, sae.dtype) == ("resid_post.2", 4, 128, "float32")
    np.testing.assert_array_equal(sae.arrays["W_dec"], made.W_dec.detach().numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_another_dtype(dtype: str, ops: Ops, tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae", "topk")
    sae = read_folder(folder, 1 << 30).load("a", "", dtype, INFO)
    maths = LatentMaths(ops)
    f = on_host(ops, ops.f32(maths.encode(maths.device(sae), ops.exact(ROWS)))).astype(np.float64)
    whole = maths.device(read_folder(folder, 1 << 30).load("a", "", "auto", INFO))
    expected = on_host(ops, maths.encode(whole, ops.exact(ROWS)))
    bound = {"bfloat16": 2e-2, "float16": 3e-3, "float64": 1e-6}[dtype]  # some units in the last place
    at = expected.argmax(axis=1)
    rows = np.arange(len(ROWS))
    assert np.abs(f[rows, at] - expected[rows, at]).max() < bound * expected.max()


@pytest.mark.parametrize("kind", ["Standard", "TopK", "JumpReLU", "Gated"])
def test_what_training_saves_before_it_ends(kind: str, ops: Ops, tmp_path: Path) -> None:
    """A checkpoint's config holds the fields of training too."""
    torch.manual_seed(1)
    config = getattr(sae_lens(), f"{kind}TrainingSAEConfig")(d_in=64, d_sae=96, **({"k": 6} if kind == "TopK" else {}))
    config.metadata.hook_name = "blocks.2.hook_resid_post"
    made = getattr(sae_lens(), f"{kind}TrainingSAE")(config)
    with torch.no_grad():
        made.W_dec *= torch.linspace(0.5, 2.0, 96)[:, None]  # norms that matter where latents are rescaled by them
    made.save_model(tmp_path / "saved")
    _require_alike(ops, *opened(tmp_path / "saved"), TOLERANCE)
