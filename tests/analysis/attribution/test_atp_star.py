"""AtP*'s corrections: exact where only the softmax is not linear, and backward passes with a layer held still."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.attribution.atp_star import attention_scale, grad_drop, qk_fix, refocus
from probewire.analysis.attribution.attribution_patching import attribution_patching
from probewire.analysis.attribution.patching import patch
from probewire.clients import (
    Client,
    Coordinate,
    InvalidArgument,
    Logit,
    Unsupported,
    patch as patch_hook,
    steer as steer_hook,
)
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

CLEAN, CORRUPT = "abcdefgh", "abxdefyh"
Z = Coordinate("z.2", 8, unit=5, head=3)
"""Linear in its head's attention pattern, so that only the softmax bends what q and k do to it."""


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_fix_is_exact_where_all_after_the_softmax_is_linear(tiny: Client, direction: str) -> None:
    fixed = qk_fix(tiny, CLEAN, CORRUPT, Z, layers=[2], direction=direction)
    for kind in ("q", "k"):
        exact = patched_one_by_one(tiny, f"{kind}.2", direction)
        plain = attribution_patching(tiny, CLEAN, CORRUPT, f"{kind}.2", Z, heads="all", direction=direction)
        assert fixed[kind].effect.axes == plain.effect.axes
        assert np.abs(fixed[kind].effect.values[0] - exact).max() <= 1e-6
        assert np.abs(plain.effect.values[0] - exact).max() > 1e-3
        assert np.abs(exact).max() > 1e-2


def patched_one_by_one(client: Client, site: str, direction: str) -> np.ndarray:
    """[position, head]: the change of Z, each cell in a run of its own."""
    own, other = (CORRUPT, CLEAN) if direction == "denoise" else (CLEAN, CORRUPT)
    n_heads = client.describe().site(site[0]).widths[0]  # pyright: ignore
    cells = {f"{position} {head}": (position, head) for position in range(9) for head in range(n_heads)}
    hooks = [
        patch_hook(site, from_input="other", positions=position, heads=[head], inputs=name)
        for name, (position, head) in cells.items()
    ]
    inputs = {"other": other, "own": own} | dict.fromkeys(cells, own)
    run = client.run(inputs, hooks=hooks, capture="z.2")
    plain = run.inputs["own"]["z.2"][8, 3, 5]
    return np.array([run.inputs[name]["z.2"][8, 3, 5] - plain for name in cells]).reshape(9, n_heads)


def test_it_comes_closer_to_patching_than_plain_attribution(tiny: Client) -> None:
    metric = Logit(70)
    fixed = qk_fix(tiny, CLEAN, CORRUPT, metric)
    for kind in ("q", "k"):
        exact = patch(tiny, CLEAN, CORRUPT, kind, metric, heads="all").effect.values
        plain = attribution_patching(tiny, CLEAN, CORRUPT, kind, metric, heads="all").effect.values
        assert np.abs(fixed[kind].effect.values - exact).sum() < np.abs(plain - exact).sum()


def test_refocus_is_the_softmax_of_the_moved_scores() -> None:
    rng = np.random.default_rng(0)
    scores, shift = rng.normal(size=(2, 3, 4, 4)) * 5
    scores[:, np.triu_indices(4, 1)[0], np.triu_indices(4, 1)[1]] = -np.inf

    def softmax(x: np.ndarray, sink: float | None = None) -> np.ndarray:
        weights = np.exp(x)
        return weights / (weights.sum(-1, keepdims=True) + (0.0 if sink is None else np.exp(sink)))

    for sink in (None, 0.7):
        found = refocus(scores, softmax(scores, sink), shift)
        assert np.abs(found - softmax(scores + shift, sink)).max() <= 1e-12


def test_capped_scores_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint("gemma2", tmp_path)
    service = InProcessService.create(str(folder), dtype="float32", device="cpu")
    with Client.inprocess(service) as client, pytest.raises(Unsupported, match="no multiple of q · k"):
        qk_fix(client, CLEAN, CORRUPT, Logit(70))


def test_the_scale_is_found(tiny: Client) -> None:
    run = tiny.run(CLEAN, capture=["q.1", "k.1", "attn_scores.1"])
    k = np.repeat(run["k.1"], 2, axis=1)
    assert attention_scale(run["q.1"], k, run["attn_scores.1"]) == pytest.approx(1 / np.sqrt(16), rel=1e-9)


def test_a_dropped_layer_passes_no_gradient(tiny: Client) -> None:
    """Finite differences of a model in which one layer after another has the outputs that it had."""
    metric, site, position, step = Logit(70), "mlp_out.0", 3, 1e-4
    found = grad_drop(tiny, CLEAN, CORRUPT, "mlp_out", metric)
    run = tiny.run({"clean": CLEAN, "corrupt": CORRUPT}, capture=["attn_out.*", "mlp_out.*"])
    own = run.inputs["corrupt"]
    change = run.inputs["clean"][site][position] - own[site][position]
    slopes = []
    for layer in range(3):
        frozen = [patch_hook(f"{kind}.{layer}", value=own[f"{kind}.{layer}"]) for kind in ("attn_out", "mlp_out")]
        moved = [steer_hook(site, change, alpha=a, positions=position) for a in (step, -step)]
        one, other = (
            last_logit(tiny, [h, *frozen], 70) for h in moved
        )  # what is frozen in layer 0 overwrites the move
        slopes.append(abs(one - other) / (2 * step))
    assert slopes[0] == pytest.approx(0.0, abs=1e-9)
    cell = found.effect.sel(layer=0, position=position).item()
    assert cell == pytest.approx(sum(slopes) / 2, rel=1e-5)
    assert (found.effect.values >= 0).all()


def last_logit(client: Client, hooks: list[object], token: int) -> float:
    return float(client.run(CORRUPT, hooks=hooks, capture="logits")["logits"][-1][token])


def test_after_the_last_layer_nothing_is_dropped(tiny: Client) -> None:
    plain = attribution_patching(tiny, CLEAN, CORRUPT, "resid_post.2", Logit(70)).effect.values
    found = grad_drop(tiny, CLEAN, CORRUPT, "resid_post.2", Logit(70)).effect.values
    assert found == pytest.approx(np.abs(plain) * 3 / 2, abs=1e-9)


def test_bad_input(tiny: Client) -> None:
    with pytest.raises(Unsupported, match="for the kinds q and k"):
        qk_fix(tiny, CLEAN, CORRUPT, Logit(70), kinds=["v"])
    with pytest.raises(InvalidArgument, match="equal lengths"):
        grad_drop(tiny, CLEAN, CORRUPT + "x", "mlp_out", Logit(70))
