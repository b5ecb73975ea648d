"""A quantised checkpoint computes what its values compute: every site, edit, gradient and generated token."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from probewire.backends import load_backend
from probewire.backends.hooks.base import Backend
from probewire.backends.model.footprint import footprint
from probewire.backends.model.limits import Limits
from probewire.clients import Client
from probewire.protos.edits import Add, Clamp, Edit, LowRank, Noise, ProjectOut, Replace, Scale, Zeros
from probewire.protos.errors import FailedPrecondition, InvalidArgument, Unsupported
from probewire.protos.metrics import LogitDifference
from probewire.protos.sites import ATTENTION_SITES
from probewire.protos.spec import Capture, Hook, Plan
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.backends.derived import SIZES, write
from tests.parity.harness import (
    CHUNKED,
    TOLERANCE,
    assert_same,
    every_site,
    generate,
    load,
    run,
    sequence,
)
from tests.parity.opened import TOKENS, at_all
from tests.quantised import both_of_fp8, both_of_mlx, both_of_mxfp4
from tests.tiny_models import tiny_checkpoint

SAME = 1e-5
"""Error relative to a site's largest value, in float32."""

CASES = {
    "llama 4 bit": ("mlx", "llama", 4),
    "qwen2 8 bit": ("mlx", "qwen2", 8),
    "qwen3 4 bit": ("mlx", "qwen3", 4),
    "phi3 8 bit": ("mlx", "phi3", 8),
    "smollm3 4 bit": ("mlx", "smollm3", 4),
    "gpt2 4 bit": ("mlx", "gpt2", 4),
    "gpt2 8 bit": ("mlx", "gpt2", 8),
    "gemma2 4 bit": ("mlx", "gemma2", 4),
    "gemma3 8 bit": ("mlx", "gemma3_text", 8),
    "mistral 4 bit": ("mlx", "mistral", 4),
    "llama mxfp4": ("mlx", "llama", "mxfp4"),
    "llama mixed": ("mlx", "llama", "mixed"),
    "olmo2 4 bit": ("mlx", "olmo2", 4),
    "gpt-oss on mlx": ("mlx", "gpt_oss", "published"),
    "gpt-oss on torch": ("torch", "gpt_oss", "published"),
    "fp8 on torch": ("torch", "llama", "fp8"),
    "fp8 on mlx": ("mlx", "qwen3", "fp8"),
}


def _made(family: str, how: Any, folder: Path) -> tuple[Path, Path]:
    if how == "fp8":
        return both_of_fp8(family, folder)
    if how == "published":
        return both_of_mxfp4(folder)
    if how == "mxfp4":
        return both_of_mlx(family, folder, 4, "mxfp4")
    if how == "mixed":  # as mlx-lm's recipes: some layers wider, some plain

        def wider(path: str, _: Any) -> Any:
            if "v_proj" in path:
                return {"group_size": 32, "bits": 6, "mode": "affine"}
            return False if "lm_head" in path else {"group_size": 32, "bits": 3, "mode": "affine"}

        return both_of_mlx(family, folder, 3, predicate=wider)
    return both_of_mlx(family, folder, how)


@pytest.fixture(scope="module", params=list(CASES))
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Backend, quantised checkpoint, plain one of its values."""
    backend, family, how = CASES[request.param]
    return backend, *_made(family, how, tmp_path_factory.mktemp("quantised"))


@pytest.fixture(scope="module")
def backends(folders: tuple[str, Path, Path]) -> Generator[tuple[Backend, Backend]]:
    """The quantised model, and the plain one of its values, on the same backend."""
    one, other = (load(folders[0], folder) for folder in folders[1:])
    yield one, other
    one.close()
    other.close()


@pytest.fixture(scope="module")
def clients(folders: tuple[str, Path, Path]) -> Generator[tuple[Client, Client]]:
    """The same behind clients."""
    one, other = (_client(folder, folders[0]) for folder in folders[1:])
    yield one, other
    one.close()
    other.close()


def _client(folder: Path, backend: str, **config: Any) -> Client:
    told = WorkerConfig(str(folder), "tiny", backend=backend, dtype="float32", device="cpu", engine=CHUNKED, **config)
    return Client.inprocess(InProcessService(LocalModel(told, folder)))


def _edits(backend: Backend) -> list[Hook]:
    """An edit or two at every site of the middle layer, of every kind."""
    rng, info, hooks = np.random.default_rng(0), backend.info, list[Hook]()
    d_in = {
        "attn_out": info.n_heads * info.d_head,
        "mlp_out": info.d_mlp,
        "mlp_gate": info.d_model,
        "mlp_up": info.d_model,
    }
    for index, site in enumerate(info.sites):
        name = site.name if site.layers is None else f"{site.name}.1"
        width = site.widths[-1]
        vector = rng.normal(size=width or 1).astype(np.float32)
        of_rows: tuple[Edit, ...] = (
            Add(vector),
            Replace(Zeros(), units=(0, 2)),
            Noise(0.3, seed=5),
            Clamp(min=-0.1),
        )
        if site.name in ATTENTION_SITES:
            hooks.append(Hook(name, edit=Scale(0.5, heads=(1,))))
        elif site.edits:
            hooks += [Hook(name, edit=of_rows[index % 4]), Hook(name, edit=ProjectOut(vector[None]))]
        if "low_rank" in site.edits:
            low_rank = LowRank(
                rng.normal(size=(d_in[site.name], 2)).astype(np.float32),
                rng.normal(size=(2, width)).astype(np.float32),
                0.2,
            )
            hooks.append(Hook(name, edit=low_rank))
    return hooks


def test_every_site_and_edit_is_that_of_its_values(backends: tuple[Backend, Backend]) -> None:
    quantised, meant = backends
    assert {site.name: site.edits for site in quantised.info.sites} == {s.name: s.edits for s in meant.info.sites}
    plans = [every_site(meant), *(Plan((edit, Hook("logits", capture=Capture()))) for edit in _edits(meant))]
    for plan in plans:
        assert_same(run(quantised, TOKENS, plan), run(meant, TOKENS, plan), SAME)


def test_gradients_are(clients: tuple[Client, Client]) -> None:
    metric, info = LogitDifference((7, 8), (200,), 9), clients[0].describe()
    for rules, at in (((), at_all(info)), (info.rules, ["embed", "resid_mid.*", "mlp_out.*"])):
        found, expected = (client.gradients(TOKENS, metric, at=at, rules=rules) for client in clients)
        assert found.metric == pytest.approx(expected.metric, rel=SAME)
        for site, value in expected.gradients.items():
            scale = max(float(np.abs(value).max()), 1e-9)
            assert np.abs(found.gradients[site] - value).max() <= SAME * scale, (site, rules)
    assert set(found.gradients) == set(expected.gradients)


def test_generation_is_past_any_window(backends: tuple[Backend, Backend]) -> None:
    plan = Plan((Hook("logits", capture=Capture()), Hook("resid_post.1", edit=Scale(1.1))))
    made = []
    for backend in backends:
        assert backend.info.generate, backend.info.generate_note
        prompts = (TOKENS, TOKENS[:3])
        asked = [sequence(backend, p, plan, mode="generate", max_new=6, name=str(i)) for i, p in enumerate(prompts)]
        made.append(generate(backend, asked))
    for found, expected in zip(*made, strict=True):
        assert found.tokens == expected.tokens
        assert_same(found.captured, expected.captured, SAME)


def test_a_sweep_is(clients: tuple[Client, Client]) -> None:
    plans = [[Hook("mlp_out.1", edit=Scale(factor))] for factor in (0.0, 0.5, 2.0)]
    found, expected = (client.sweep(TOKENS, LogitDifference((7,), (8,)), plans) for client in clients)
    for name, values in expected.measured.items():
        assert np.ptp(values) > 1e-3
        np.testing.assert_allclose(found.measured[name], values, rtol=SAME, atol=SAME)


def test_weights_are_its_values(backends: tuple[Backend, Backend], clients: tuple[Client, Client]) -> None:
    quantised, meant = clients
    shapes = quantised.weight_names()
    packed: Any = cast("Any", backends[0]).weights.packed
    assert packed
    assert not [name for name in shapes if name.endswith(("scales", "biases", "_blocks", "_scale_inv"))]
    for name in packed:
        value = quantised.weights(name)
        assert value.dtype == np.float32
        assert value.shape == shapes[name]
        other = f"{name.removeprefix('model.')}" if name not in meant.weight_names() else name
        expected = np.asarray(meant.weights(other))
        if expected.shape != value.shape or not np.array_equal(value, expected):
            expected = expected.T  # mlx-lm's gpt2 has outputs first
        assert np.array_equal(value, expected), name


def test_what_the_weights_are_is_told(clients: tuple[Client, Client]) -> None:
    quantised, meant = clients
    told = quantised.describe().quantization
    assert any(word in told for word in ("mlx", "mxfp4", "fp8"))
    assert f"  weights    {told.split(',')[0]}" in repr(quantised.describe())
    assert not meant.describe().quantization


# ---- at load ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "phi3"])
def test_quantised_at_load_both_backends_hold_the_same_numbers(family: str, quantize: str, tmp_path: Path) -> None:
    plain = tiny_checkpoint(family, tmp_path)
    one, other = (_load(backend, plain, quantize) for backend in ("torch", "mlx"))
    unchanged = load("torch", plain)
    sites = every_site(unchanged)
    assert_same(run(one, TOKENS, sites), run(other, TOKENS, sites), TOLERANCE["float32"])
    changed = 0
    for name in one.weight_names():
        values = one.weight(name)
        assert values.shape == one.weight_names()[name]
        np.testing.assert_allclose(values, other.weight(name), atol=1e-6)
        error = float(np.abs(values - unchanged.weight(name)).max())
        changed += error > 0
        assert error <= 2 * np.abs(values).max() / (15 if quantize == "int4" else 255), "a step of its group at most"
    assert f"{quantize} at load, {changed} weights in groups of 64" in one.info.quantization
    assert one.info.generate, one.info.generate_note
    assert other.info.generate, other.info.generate_note
    embed = Plan((Hook("embed", capture=Capture()),))
    assert_same(run(one, TOKENS, embed), run(unchanged, TOKENS, embed), 0.0)
    assert one.info.model_hash == other.info.model_hash != unchanged.info.model_hash
    for backend in (one, other, unchanged):
        backend.close()


def _load(backend: str, folder: Path, quantize: str, dtype: str = "float32") -> Backend:
    return load_backend(
        backend,
        folder,
        model_id="tiny",
        model_hash="ab",
        limits=CHUNKED,
        dtype=dtype,
        device="cpu",
        quantize=quantize,
    )


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_gradients_go_through_weights_quantised_at_load(backend: str, tmp_path: Path) -> None:
    """Held against the model of the same values."""
    plain = tiny_checkpoint("llama", tmp_path)
    quantised = _client(plain, backend, quantize="int4")
    meant = _meant(plain, quantised, tmp_path / "meant")
    client = _client(meant, backend)
    metric, at = LogitDifference((7, 8), (200,), 9), at_all(client.describe())
    found, expected = (c.gradients(TOKENS, metric, at=at) for c in (quantised, client))
    for site, value in expected.gradients.items():
        assert np.abs(found.gradients[site] - value).max() <= SAME * max(float(np.abs(value).max()), 1e-9), site
    quantised.close()
    client.close()


def _meant(plain: Path, quantised: Client, folder: Path) -> Path:
    folder.mkdir()
    tensors = {name: np.asarray(quantised.weights(name)) for name in quantised.weight_names()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in plain.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_derived_table_is_found_on_a_model_quantised_at_load(tmp_path: Path) -> None:
    folder = write("olmo2", tmp_path / "olmo2", **SIZES)
    plain, quantised = (_load("torch", folder, quantize) for quantize in ("", "int4"))
    assert {site.name: site.edits for site in quantised.info.sites} == {s.name: s.edits for s in plain.info.sites}
    assert "low_rank" in {edit for site in quantised.info.sites for edit in site.edits}
    plain.close()
    quantised.close()


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_what_cannot_be_quantised_is_refused(backend: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="unknown quantize 'int3'; allowed: int8, int4"):
        _load(backend, tiny_checkpoint("llama", tmp_path), "int3")
    with pytest.raises(FailedPrecondition, match="quantised already"):
        _load(backend, both_of_fp8("llama", tmp_path)[0], "int4")
    mixture = tiny_checkpoint("gpt_oss", tmp_path)
    if backend == "torch":
        with pytest.raises(FailedPrecondition, match="on torch is for models without experts"):
            _load(backend, mixture, "int4")
    else:
        made = _load(backend, mixture, "int8")
        assert "router as they are" in made.info.quantization
        with pytest.raises(Unsupported, match="in other pieces"):
            made.weight("model.layers.0.mlp.experts.gate_up_proj")
        made.close()


# ---- dtype and memory ------------------------------------------------------------------------------------------------


def test_auto_is_the_dtype_of_the_scales(tmp_path: Path) -> None:
    """mlx-lm's converter leaves the old model's dtype in the config."""
    folder, _ = both_of_mlx("qwen2", tmp_path, 8, dtype="bfloat16")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    made = load("mlx", folder, dtype="auto")
    assert made.info.dtype == "bfloat16"
    [tokens] = generate(made, [sequence(made, TOKENS, Plan(), mode="generate", max_new=3)])
    assert len(tokens.tokens) == len(TOKENS) + 3
    made.close()


def _held(backend: Any) -> int:
    """Bytes of the arrays that a model on MLX has."""
    parameters: Any = tree_flatten(backend.model.parameters())
    return sum(value.nbytes for _, value in parameters)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_memory_that_is_counted_is_the_memory_that_is_held(dtype: str, tmp_path: Path) -> None:
    packed = both_of_mlx("llama", tmp_path, 4)[0]
    published, fp8 = both_of_mxfp4(tmp_path)[0], both_of_fp8("llama", tmp_path)[0]
    for folder in (packed, published, fp8):
        made: Any = load("mlx", folder, dtype=dtype)
        assert footprint(folder, dtype, Limits(), "mlx").weights == _held(made), folder.name
        made.close()
    for folder in (published, fp8):
        on_torch: Any = load("torch", folder, dtype=dtype)
        itemsize = 2 if dtype == "bfloat16" else 4
        n_bytes = itemsize * sum(parameter.numel() for parameter in on_torch.model.parameters())
        assert footprint(folder, dtype, Limits(), "torch").weights == n_bytes, folder.name
        on_torch.close()


def test_quantised_at_load_counts_as_held(tmp_path: Path) -> None:
    folder = tiny_checkpoint("llama", tmp_path)
    for quantize in ("int8", "int4"):
        made: Any = _load("mlx", folder, quantize, "bfloat16")
        assert footprint(folder, "bfloat16", Limits(), "mlx", quantize).weights == _held(made)
        made.close()
