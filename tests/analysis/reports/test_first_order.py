"""Predicted against measured: their ratio goes to 1 as the change does to 0, on both backends (a delta as a hook's product)."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.reports.first_order import activation_change, first_order
from probewire.analysis.tasks import accuracy, fit, ioi
from probewire.clients import Add, Client, Delta, Hook, LowRank, Variant, capture
from probewire.protos.errors import InvalidArgument

PROMPTS = ["The keys to the cabinet", "When Mary and John went to the store", "A small bird"]


@pytest.fixture(scope="module")
def variant(tiny: Client) -> Variant:
    rng, info = np.random.default_rng(0), tiny.describe()
    wide, d = info.d_mlp, info.d_model
    heads = info.n_heads * info.d_head
    return Variant(
        {
            "w_down.1": Delta(rng.normal(size=(wide, 2)) * 0.05, rng.normal(size=(2, d)), rng.normal(size=d) * 0.02),
            "w_o.0": Delta(rng.normal(size=(heads, 1)) * 0.05, rng.normal(size=(1, d))),
        }
    )


def _hooks(variant: Variant, scale: float) -> list[Hook]:
    """The same products as hooks, and the bias as a product of nothing else."""
    low = {"w_down.1": "mlp_out.1", "w_o.0": "attn_out.0"}
    made = [Hook(low[name], edit=LowRank(delta.a, delta.b, alpha=scale)) for name, delta in variant.deltas.items()]
    bias = variant.deltas["w_down.1"].bias
    return [*made, Hook("mlp_out.1", edit=Add(bias, alpha=scale))]


def test_the_ratio_goes_to_one(tiny: Client, variant: Variant) -> None:
    """8.2, 24: within 2 % at a small scale, and the error falls at least 1.8-fold as the scale is halved."""
    task = fit(ioi(40), tiny, n=8)
    predicted = first_order(tiny, variant, task, progress=False)
    assert predicted.left_out == ()
    assert np.allclose(predicted.change, sum(predicted.by_weight.values()))
    base = accuracy(tiny, task).clean
    errors: list[float] = []
    for scale in (0.04, 0.02, 0.01):
        measured = accuracy(tiny, task, hooks=_hooks(variant, scale)).clean - base
        errors.append(abs(1 - float((predicted.change * scale).sum() / measured.sum())))
    assert errors[2] <= 0.02, errors
    assert errors[0] / errors[1] >= 1.8, errors


def test_queries_are_left_out_and_said_to_be(tiny: Client, variant: Variant) -> None:
    info = tiny.describe()
    wide = info.n_heads * info.d_head
    more = Variant({**variant.deltas, "w_q.1": Delta(np.ones((info.d_model, 1)), np.ones((1, wide)))})
    found = first_order(tiny, more, fit(ioi(40), tiny, n=4), progress=False)
    assert found.left_out == ("w_q.1",)
    with pytest.raises(InvalidArgument, match="w_q"):
        first_order(tiny, more.only("w_q.*"), fit(ioi(40), tiny, n=4))


def test_activation_change_is_that_of_the_outputs(tiny: Client, variant: Variant) -> None:
    """By hand: outputs with the hooks less those without, where the weight alone is changed."""
    found, left_out = activation_change(tiny, variant, PROMPTS)
    assert left_out == ()
    delta = variant.deltas["w_o.0"]
    moved = had = 0.0
    hooks = [Hook("attn_out.0", edit=LowRank(delta.a, delta.b))]
    for prompt in PROMPTS:
        before, after = (
            tiny.run(prompt, hooks=given, capture=capture("attn_out.0"))["attn_out.0"] for given in ((), hooks)
        )
        moved += float(((after - before)[1:].astype(np.float64) ** 2).sum())
        had += float((before[1:].astype(np.float64) ** 2).sum())
    assert found["w_o.0"] == pytest.approx(moved / had, rel=1e-4)
