"""Latents of SAEs: reference = torch = mlx, in runs, generations, gradients and sweeps; and what must hold exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends import reference
from probewire.backends.saes import Sae, read_folder
from probewire.clients import (
    Client,
    Coordinate,
    Hook,
    Input,
    IntegratedPath,
    InvalidArgument,
    LogProb,
    Tensor,
    capture,
    edit_latents,
    hook,
    reconstruct,
    steer,
)
from probewire.protos.edits import Scale
from probewire.protos.spec import Plan
from tests.parity.opened import OTHER, TOKENS, Opened, both, gap
from tests.saes import ARCHITECTURES, write_identity, write_sae
from tests.tiny_models import tiny_checkpoint

SITE = "resid_post.1"
TARGET = Coordinate("resid_post.2", 13, direction=Tensor.of(np.random.default_rng(5).standard_normal(64)))
STEP = 2.0**-9
CHANGES: dict[int, Any] = {
    3: 1.5,
    5: {"add": -0.75},
    8: {"scale": 3.0},
    13: {"min": 0.5, "max": 0.9},
    21: {"set": -2.0, "active": True},
    34: {"max": 0.1},
}
EXACT = 1e-6
"""Relative, in float64; transformers and mlx-lm make their rotary tables in float32."""


class Loaded:
    """A model with an SAE of every kind, and the reference's own."""

    def __init__(self, client: Client, folder: Path, saes: dict[str, Sae], model: Any) -> None:
        self.client, self.folder, self.saes, self.model = client, folder, saes, model

    def expected(self, *hooks: Hook, tokens: list[int] | None = None, prompt_length: int | None = None) -> Any:
        """Captures of the reference: (hook, site, part) → rows."""
        return reference.run(
            self.model, tokens or TOKENS, Plan(hooks), prompt_length=prompt_length, saes=self.saes
        ).captures


@pytest.fixture(scope="module", params=["torch", "mlx"])
def loaded(
    request: pytest.FixtureRequest, opened: Opened, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Loaded]:
    client = opened("llama", request.param)
    folder = tmp_path_factory.mktemp("saes")
    saes: dict[str, Sae] = {}
    for kind in ARCHITECTURES:
        written = write_sae(folder / kind, kind)
        client.load_sae(written, name=kind, dtype="float64")
        saes[kind] = read_folder(written, 1 << 30).load(kind, "", "float64", client.describe())
    checkpoint = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    yield Loaded(client, folder, saes, reference.load(checkpoint, "float64"))
    for kind in ARCHITECTURES:
        client.unload_sae(kind)


def reads(kind: str) -> tuple[Hook, ...]:
    return (
        capture(SITE, latents=kind, top_k=12, id="top"),
        capture(SITE, latents=kind, latent_ids=[3, 5, 8, 90], id="some"),
        capture(SITE, latents=kind, id="all"),
    )


def same_reads(found: Any, expected: Any, first: int = 0) -> None:
    """The three hooks of `reads`, from hook `first` on."""
    rows = found.hook("top").latents(SITE)
    want = {part: expected[first, SITE, part].values for part in ("value", "index", "count")}
    np.testing.assert_array_equal(rows.ids, want["index"])
    np.testing.assert_array_equal(rows.counts, want["count"])
    assert gap(rows.values, want["value"]) < 1e-6  # sent as float32
    assert gap(found.hook("some")[SITE], expected[first + 1, SITE, ""].values) < 1e-6
    assert gap(found.hook("all")[SITE], expected[first + 2, SITE, ""].values) < 1e-6


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_reads(loaded: Loaded, kind: str) -> None:
    found = loaded.client.run(TOKENS, capture=list(reads(kind))).captures
    same_reads(found, loaded.expected(*reads(kind)))
    assert found.hook("top").latents(SITE).counts.min() > 0


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("error", [True, False])
def test_edits(loaded: Loaded, kind: str, error: bool) -> None:
    hooks = (edit_latents(SITE, kind, CHANGES, error=error, positions=[2, 5, 6, -1]), capture(SITE), capture("logits"))
    found = loaded.client.run(TOKENS, hooks=hooks[0], capture=list(hooks[1:])).captures
    expected = loaded.expected(*hooks)
    assert gap(found[SITE], expected[1, SITE, ""].values) < EXACT
    assert gap(found["logits"], expected[2, "logits", ""].values) < EXACT
    plain = loaded.client.run(TOKENS, capture=[SITE]).captures[SITE]
    assert gap(found[SITE][[2, 5, 6]], plain[[2, 5, 6]]) > 1e-3
    np.testing.assert_array_equal(found[SITE][[0, 1, 3, 4]], plain[[0, 1, 3, 4]])


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_a_reconstruction_in_the_rows_place(loaded: Loaded, kind: str) -> None:
    hooks = (reconstruct(SITE, kind), capture(SITE))
    found = loaded.client.run(TOKENS, hooks=hooks[0], capture=[SITE]).captures[SITE]
    assert gap(found, loaded.expected(*hooks)[1, SITE, ""].values) < EXACT


@pytest.mark.parametrize("kind", ["topk", "gated"])
def test_a_generation_equals_teacher_forcing(loaded: Loaded, kind: str) -> None:
    edit = edit_latents(SITE, kind, CHANGES, phase="generated")
    made = loaded.client.generate(TOKENS, hooks=edit, capture=list(reads(kind)), max_new_tokens=6, ignore_eos=True)
    expected = loaded.expected(edit, *reads(kind), tokens=list(made.token_ids)[:-1], prompt_length=len(TOKENS))
    same_reads(made.captures, expected, first=1)


def test_neighbours_change_nothing(loaded: Loaded) -> None:
    """Requests that read the same latents are encoded together; others ask for something else on the same site."""
    prompts = {f"p{i}": TOKENS[i:] + OTHER[: i + 1] for i in range(6)}
    alone = {name: loaded.client.run(ids, capture=list(reads("topk"))).captures for name, ids in prompts.items()}
    steered = steer(SITE, np.ones(64), 3.0, inputs=["p2"])
    edited = edit_latents(SITE, "jumprelu", CHANGES, inputs=["p4"])
    together = loaded.client.run(prompts, hooks=[steered, edited], capture=[capture(SITE, latents="topk", top_k=12)])
    for name in ("p0", "p1", "p3", "p5"):
        found, want = together.inputs[name].captures.latents(SITE), alone[name].hook("top").latents(SITE)
        np.testing.assert_array_equal(found.ids, want.ids)
        assert gap(found.values, want.values) < 1e-6
    assert not np.array_equal(
        together.inputs["p2"].captures.latents(SITE).ids, alone["p2"].hook("top").latents(SITE).ids
    )


def test_several_saes_at_several_sites(loaded: Loaded) -> None:
    client = loaded.client
    for site, width in (("mlp_out.0", 64), ("z.1", 64), ("mlp_act.2", 96)):
        folder = write_sae(loaded.folder / site, "topk", d_in=width, site=site)
        client.load_sae(folder, name=site, dtype="float64")
        loaded.saes[site] = read_folder(folder, 1 << 30).load(site, "", "float64", client.describe())
    try:
        hooks = [capture(site, latents=site, top_k=7) for site in ("mlp_out.0", "z.1", "mlp_act.2")]
        hooks += [capture(SITE, latents="gated", top_k=5, id="g"), capture(SITE, latents="topk", top_k=5, id="t")]
        edits = [edit_latents("z.1", "z.1", {4: 2.0}), edit_latents("mlp_act.2", "mlp_act.2", {1: {"add": 1.0}})]
        found = client.run(TOKENS, hooks=edits, capture=hooks).captures
        expected = loaded.expected(*edits, *hooks)
        for i, hook in enumerate(hooks):
            np.testing.assert_array_equal(
                found.hook(i + 2).latents(hook.site).ids, expected[i + 2, hook.site, "index"].values
            )
    finally:
        for site in ("mlp_out.0", "z.1", "mlp_act.2"):
            client.unload_sae(site)


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "layer norm"])
def test_gradients_by_latents(loaded: Loaded, kind: str) -> None:
    """They add up to row · gradient, and equal finite differences through the edit.

    Differences need all of float64, which mlx-lm's rotary embedding is not computed in: MLX is compared with torch below.
    """
    client, position = loaded.client, 6
    at = [capture(SITE, latents=kind, top_k=96, id="latents"), capture(SITE, id="whole")]
    found = client.gradients(TOKENS, TARGET, at=at, capture=[SITE])
    rows, whole = found.gradients.hook("latents").latents(SITE), found.gradients.hook("whole")[SITE]
    total = rows.attributions.sum(axis=1) + rows.error_attribution + rows.bias_attribution
    assert gap(total, (whole * found.only.captures[SITE]).sum(axis=1)) < 1e-5  # latents come in float32
    if client.describe().backend == "mlx":
        return
    latent = int(rows.ids[position, 1])

    def metric(change: float) -> float:
        edit = edit_latents(SITE, kind, {latent: {"add": change}}, positions=position)
        return float(client.gradients(TOKENS, TARGET, hooks=edit).metric)

    slope = (metric(STEP) - metric(-STEP)) / (2 * STEP)
    assert rows.gradients[position, 1] == pytest.approx(slope, rel=2e-4)


@pytest.fixture(scope="module")
def two(opened: Opened, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Client]]:
    """The same model and SAEs on torch and on MLX."""
    clients, kinds = (opened("qwen3", "torch"), opened("qwen3", "mlx")), ("topk", "standard", "gated")
    for kind in kinds:
        folder = write_sae(tmp_path_factory.mktemp("two") / kind, kind)
        for client in clients:
            client.load_sae(folder, name=kind, dtype="float64")
    yield clients
    for client in clients:
        for kind in kinds:
            client.unload_sae(kind)


@pytest.mark.parametrize("kind", ["topk", "standard", "gated"])
def test_gradients_go_through_an_edit(two: tuple[Client, Client], kind: str) -> None:
    """An early row's gradient, with latents changed later on: finite differences, and the same on both backends."""
    direction = np.random.default_rng(3).standard_normal(64).astype(np.float32) / 64
    edit = edit_latents(SITE, kind, {8: {"scale": 2.5}, 3: 1.0, 40: {"add": 0.3}})
    at = ["resid_post.0", capture(SITE, latents=kind, top_k=20, id="latents")]
    torch, mlx = (client.gradients(TOKENS, TARGET, hooks=edit, at=at) for client in two)
    assert gap(mlx.gradients["resid_post.0"], torch.gradients["resid_post.0"]) < EXACT
    for mine, theirs in zip(latent_parts(mlx), latent_parts(torch), strict=True):
        assert gap(mine, theirs) < EXACT

    def metric(alpha: float) -> float:
        hooks = [steer("resid_post.0", direction, alpha, positions=3), edit]
        return float(two[0].gradients(TOKENS, TARGET, hooks=hooks).metric)

    slope = (metric(STEP) - metric(-STEP)) / (2 * STEP)
    assert float(torch.gradients["resid_post.0"][3] @ direction) == pytest.approx(slope, rel=2e-4)


@pytest.mark.parametrize("captured", [SITE, capture(SITE, latents="topk", top_k=4)])
def test_values_at_the_site_where_a_forward_may_end(loaded: Loaded, captured: Any) -> None:
    target = Coordinate(SITE, -1, unit=3)
    found = loaded.client.gradients(TOKENS, target, at="resid_post.0", capture=[captured]).only.captures
    assert SITE in found


def test_numbers_that_an_sae_cannot_hold(loaded: Loaded) -> None:
    loaded.client.load_sae(loaded.folder / "topk", name="half", dtype="float16")
    try:
        with pytest.raises(InvalidArgument, match=r"set 70000\.0 is beyond float16"):
            loaded.client.run(TOKENS, hooks=edit_latents(SITE, "half", {1: 70_000}))
    finally:
        loaded.client.unload_sae("half")


def test_what_is_no_number_is_shown(loaded: Loaded) -> None:
    huge = [steer(SITE, np.full(64, 3e38, np.float32), positions=2), hook(SITE, Scale(1e30), positions=2)]
    rows = loaded.client.run(TOKENS, hooks=huge, capture=capture(SITE, latents="norm rescaled", top_k=4)).captures
    assert not np.isfinite(rows.latents(SITE).values[2]).all() or rows.latents(SITE).counts[2] > 0


def test_a_row_of_zeros(loaded: Loaded) -> None:
    zero = hook(SITE, Scale(0.0), positions=3)
    reads = capture(SITE, latents="norm rescaled", top_k=12)
    found = loaded.client.run(TOKENS, hooks=zero, capture=reads).captures.latents(SITE)
    expected = loaded.expected(zero, reads)
    np.testing.assert_array_equal(found.ids, expected[1, SITE, "index"].values)
    assert np.isfinite(found.values).all()


def test_a_streams_norm_beyond_float16(opened: Opened, tmp_path: Path) -> None:
    """Squares of it overflow there; the same latents fire on both backends as in float32."""
    ids: list[Any] = []
    for backend in ("torch", "mlx"):
        client = opened("llama", backend, "float32")
        for dtype in ("float32", "float16"):
            client.load_sae(write_sae(tmp_path / dtype, "norm rescaled"), name=dtype, dtype=dtype)
            loud = hook(SITE, Scale(400.0))
            found = client.run(TOKENS, hooks=loud, capture=capture(SITE, latents=dtype, top_k=1)).captures
            ids.append(found.latents(SITE).ids[:, 0])
            client.unload_sae(dtype)
    for other in ids[1:]:
        np.testing.assert_array_equal(other, ids[0])


def test_no_latents_along_a_path(loaded: Loaded) -> None:
    inputs = {"own": TOKENS, "other": Input(token_ids=tuple(OTHER), source_only=True)}
    at = capture(SITE, latents="topk", top_k=4)
    with pytest.raises(InvalidArgument, match="on a path a row's latents differ"):
        loaded.client.gradients(inputs, TARGET, at=at, path=IntegratedPath("other", 2))


def test_what_a_run_made_ready_serves_a_gradient(two: tuple[Client, Client]) -> None:
    """Torch makes tensors in a run that no gradient may pass; an SAE's weights must not be among them."""
    edit = edit_latents(SITE, "standard", {17: 1.0, 18: {"scale": 3.0}})
    for client in two:
        client.run(TOKENS, hooks=edit, capture=[capture(SITE, latents="standard", latent_ids=[17, 18])])
        assert client.gradients(TOKENS, TARGET, hooks=edit, at="resid_post.0").gradients["resid_post.0"].any()


def latent_parts(found: Any) -> list[Any]:
    rows = found.gradients.hook("latents").latents(SITE)
    return [rows.values, rows.gradients, rows.error_attribution, rows.bias_attribution]


def test_a_sweep_over_latents(loaded: Loaded) -> None:
    plans = [[edit_latents(SITE, "topk", {latent: 2.0}, positions=5)] for latent in range(8)]
    found = loaded.client.sweep(TOKENS, LogProb(17), plans, progress=False)
    for plan, value in zip(plans, found.array().values.reshape(-1), strict=True):
        assert value == pytest.approx(loaded.client.gradients(TOKENS, LogProb(17), hooks=plan).metric, abs=1e-6)


def test_a_live_session_edits_latents(loaded: Loaded) -> None:
    edit = edit_latents(SITE, "topk", {3: 4.0})
    with loaded.client.session([edit]) as session:
        bound = loaded.client.generate(TOKENS, session=session, capture=[SITE], max_new_tokens=4, ignore_eos=True)
    own = loaded.client.generate(TOKENS, hooks=edit, capture=[SITE], max_new_tokens=4, ignore_eos=True)
    assert bound.token_ids == own.token_ids
    np.testing.assert_array_equal(bound.captures[SITE], own.captures[SITE])


@both
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_identity_sae_changes_nothing(opened: Opened, backend: str, dtype: str, tmp_path: Path) -> None:
    client = opened("llama", backend, dtype)
    client.load_sae(write_identity(tmp_path / "identity"), name="identity")
    try:
        plain = client.run(TOKENS, capture=[SITE, "logits"]).captures
        through = client.run(TOKENS, hooks=reconstruct(SITE, "identity"), capture=[SITE, "logits"]).captures
        for site in (SITE, "logits"):
            np.testing.assert_array_equal(through[site].view(np.uint8), plain[site].view(np.uint8))
    finally:
        client.unload_sae("identity")


@both
@pytest.mark.parametrize("kind", ["topk", "gated"])
def test_a_latent_set_to_its_own_value_is_bit_identical(
    opened: Opened, backend: str, kind: str, tmp_path: Path
) -> None:
    client = opened("llama", backend, "bfloat16")
    client.load_sae(write_sae(tmp_path / "own", kind), name="own")
    try:
        plain = client.run(TOKENS, capture=["logits", capture(SITE, latents="own", top_k=6, id="own")]).captures
        rows = plain.hook("own").latents(SITE)
        own = [
            edit_latents(SITE, "own", {int(rows.ids[p, 0]): float(rows.values[p, 0])}, positions=p) for p in range(8)
        ]
        unchanged = client.run(TOKENS, hooks=own, capture=["logits"]).captures["logits"]
        np.testing.assert_array_equal(unchanged.view(np.uint8), plain["logits"].view(np.uint8))
        moved = edit_latents(SITE, "own", {int(rows.ids[0, 0]): float(rows.values[0, 0]) + 1.0}, positions=0)
        assert not np.array_equal(
            client.run(TOKENS, hooks=moved, capture=["logits"]).captures["logits"], plain["logits"]
        )
    finally:
        client.unload_sae("own")
