"""Numbers that no dtype at hand holds: refused before they act, or an error where a capture cannot say them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.clients import capture, hook, patch, steer
from probewire.protos.edits import Clamp, Constant, Replace, Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import Logit
from probewire.protos.spec import Capture, Condition, Hook, Mean
from probewire.protos.tensors import Tensor
from tests.parity.opened import TOKENS, Opened, both, gap
from tests.saes import write_sae

SITE = "resid_post.1"
LOUD = patch(SITE, value=1e5, positions=[2, 5], units=[7])
"""A massive activation: 1e5 in one dimension of two rows."""
N = len(TOKENS)


# ---- captures --------------------------------------------------------------------------------------------------------


@both
def test_a_capture_that_its_dtype_does_not_hold(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    why = f"{SITE}: the row at position 2 holds numbers beyond float16; capture it as it is, or in float32"
    reads: list[dict[str, Any]] = [
        {},
        {"reduce": "mean"},
        {"reduce": "norm"},
        {"positions": [1, 2]},
        {"when": Condition(1e4, unit=7)},
    ]
    for read in reads:
        with pytest.raises(InvalidArgument, match=why):
            client.run(TOKENS, hooks=LOUD, capture=capture(SITE, dtype="float16", **read))
    with pytest.raises(InvalidArgument, match="position 5 holds numbers beyond float16"):
        client.run(TOKENS[:6], hooks=LOUD, capture=capture(SITE, dtype="float16", reduce="last"))
    with pytest.raises(InvalidArgument, match="position 2 holds numbers beyond float16"):
        client.generate([TOKENS], hooks=LOUD, capture=capture(SITE, dtype="float16"), max_new_tokens=3)


@both
def test_what_it_does_hold_comes(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    fine: list[dict[str, Any]] = [
        {"dtype": "bfloat16"},
        {"dtype": "float32"},
        {},
        {"dtype": "float16", "positions": [0, 3, -1]},
        {"dtype": "float16", "reduce": "last"},
        {"dtype": "float16", "when": Condition(1e4, unit=7, op="lt")},
        {"dtype": "float16", "before": True},
    ]
    for read in fine:
        found = client.run(TOKENS, hooks=LOUD, capture=capture(SITE, **read))[SITE]
        assert np.isfinite(found.astype(np.float64)).all(), read
    scores = client.run(TOKENS, capture=capture("attn_scores.1", dtype="float16"))["attn_scores.1"]
    assert np.isneginf(scores[:, 0, 1:].astype(np.float32)).all(), "what was infinite before the cast may be after it"


@both
def test_a_mean_is_cast_once(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    whole = client.run(TOKENS, capture=SITE)[SITE].astype(np.float64).mean(axis=0)
    found = client.run(TOKENS, capture=hook(SITE, capture=Capture(dtype="bfloat16", reduce=Mean())))[SITE][0]
    rounded = Tensor.of(whole.astype(found.dtype)).floats()
    assert np.abs(found.astype(np.float32) - rounded).max() <= 2.0**-8 * np.abs(rounded).max()
    assert (found.astype(np.float32) == rounded).mean() > 0.9


@both
def test_latents_and_gradients(opened: Opened, backend: str, tmp_path: Path) -> None:
    client = opened("llama", backend, "float32")
    client.load_sae(write_sae(tmp_path / "sae", "standard"), name="loud", site=SITE)
    read = capture(SITE, latents="loud", top_k=4, dtype="float16")
    assert client.run(TOKENS, capture=read).captures.latents(SITE).values.dtype == np.float16
    louder = patch(SITE, value=1e6, positions=[2, 5], units=[7])
    with pytest.raises(InvalidArgument, match=f"{SITE}: the row at position 2 holds numbers beyond float16"):
        client.run(TOKENS, hooks=louder, capture=read)
    two = {"a": TOKENS, "b": TOKENS[::-1]}
    with pytest.raises(InvalidArgument, match="position 2 holds numbers beyond float16"):
        client.run(two, hooks=patch(SITE, value=1e6, positions=[2], units=[7], inputs="b"), capture=read)
    client.unload_sae("loud")
    steep = hook("final_norm", Scale(1e20))
    with pytest.raises(InvalidArgument, match=r"resid_pre.1: the row at position \d+ holds numbers beyond float16"):
        client.gradients(TOKENS, Logit(3), at=capture("resid_pre.1", dtype="float16"), hooks=steep)
    found = client.gradients(TOKENS, Logit(3), at=capture("resid_pre.1", dtype="bfloat16"), hooks=steep).gradients
    assert np.isfinite(found["resid_pre.1"].astype(np.float32)).all()


# ---- numbers of a user -----------------------------------------------------------------------------------------------


@both
def test_a_model_of_float16(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float16")
    beyond = "is beyond float16, in which this model computes"
    for bad in (
        patch(SITE, value=7e4),
        patch(SITE, value=np.full((1, 64), -7e4, np.float32), positions=[2]),
        hook(SITE, Clamp(min=7e4)),
        hook(SITE, Clamp(max=-7e4)),
        hook(SITE, Replace(Constant(Tensor.of([1.0, 7e4])), units=(2, 3))),
    ):
        with pytest.raises(InvalidArgument, match=beyond):
            client.run(TOKENS, hooks=[bad], capture=SITE)
    for good in (patch(SITE, value=6e4), hook(SITE, Clamp(min=-7e4, max=7e4)), steer(SITE, np.ones(64), 1e-3)):
        assert np.isfinite(client.run(TOKENS, hooks=[good], capture=SITE)[SITE].astype(np.float32)).all()


@both
def test_rows_of_float64(opened: Opened, backend: str) -> None:
    """A model of float64 holds them, one of float32 does not."""
    rows = np.full((N, 64), 1e39)
    with pytest.raises(InvalidArgument, match=r"1e\+39 is beyond float32, in which this model computes"):
        opened("llama", backend, "float32").run(TOKENS, hooks=[patch(SITE, value=rows)], capture=SITE)
    found = opened("llama", backend, "float64").run(TOKENS, hooks=[patch(SITE, value=rows)], capture=SITE)[SITE]
    assert (found == 1e39).all()


@both
def test_more_than_float32_added(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    with pytest.raises(InvalidArgument, match=r"add.alpha 1e\+20 times 1e\+20 is beyond float32"):
        client.run(TOKENS, hooks=[steer(SITE, np.full(64, 1e20, np.float32), 1e20)], capture=SITE)


@both
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_directions_of_any_length(opened: Opened, backend: str, size: float) -> None:
    """Squares of these are 0 or infinite in float32; the direction is the same."""
    client, rng = opened("llama", backend, "float32"), np.random.default_rng(0)
    direction, two = rng.normal(size=64).astype(np.float32), rng.normal(size=(2, 64)).astype(np.float32)
    scaled, both_scaled = np.float32(size) * direction, np.float32(size) * two
    pairs: list[tuple[Hook, Hook]] = [
        (steer(SITE, scaled, 0.5, norm_match=True), steer(SITE, direction, 0.5, norm_match=True)),
        (hook(SITE, Clamp(Tensor.of(both_scaled), max=0.1)), hook(SITE, Clamp(Tensor.of(two), max=0.1))),
    ]
    plain = client.run(TOKENS, capture=SITE)[SITE]
    for one, other in pairs:
        found, expected = (client.run(TOKENS, hooks=[h], capture=SITE)[SITE] for h in (one, other))
        assert gap(found, expected) <= 1e-5
        assert gap(found, plain) > 1e-3


@pytest.mark.parametrize("make", [lambda: Tensor.of([1.0, 1e39]), lambda: patch(SITE, value=1e39)])
def test_lists_of_python_are_float32(make: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"1e\+39 is beyond float32"):
        make()


def test_a_constant_is_float32() -> None:
    with pytest.raises(InvalidArgument, match=r"1e\+39 is beyond float32"):
        Constant(Tensor.of(np.array([1e39])))
    with pytest.raises(InvalidArgument, match=r"add.vector holds 1e\+39, which is beyond float32"):
        steer(SITE, np.array([1e39, 1.0]))
