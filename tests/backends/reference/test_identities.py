"""What holds between the sites of one forward pass, in every family."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.backends.reference import ReferenceModel, load
from probewire.backends.reference.mlp import Experts
from probewire.protos.sites import AXES, LAYER_SITES, Site
from tests.tiny_models import FAMILIES, VOCAB_SIZE, tiny_checkpoint

Array = np.ndarray[Any, Any]

TOKENS = [256, *b"the cat sat on the mat, again"]


def close(actual: Array, expected: Array | float) -> None:
    """Equal but for float64 rounding."""
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    return load(tiny_checkpoint(request.param, tmp_path_factory.mktemp("tiny")), "float64")


@pytest.fixture(scope="module")
def sites(model: ReferenceModel) -> dict[str, Array]:
    got: dict[str, Array] = {}

    def tap(site: Site, value: Array, linear_input: Array | None = None) -> Array:
        assert str(site) not in got, "every site is offered once"
        got[str(site)] = value
        return value

    model.forward(TOKENS, tap)
    return got


def test_sites_come_in_forward_order_with_their_axes(model: ReferenceModel, sites: dict[str, Array]) -> None:
    order = [Site.parse(name).order for name in sites]
    assert order == sorted(order, key=lambda place: place or ())
    attention = model.layers[0].attention
    sizes = {
        "pos": len(TOKENS),
        "query": len(TOKENS),
        "key": len(TOKENS),
        "d_model": 64,
        "head": 4,
        "kv_head": attention.k.weight.shape[1] // attention.d_head,
        "d_head": attention.d_head,
        "vocab": VOCAB_SIZE,
        "expert": 5,
        "d_mlp": 256 if model.architecture == "gpt2" else 96,
    }
    for name, value in sites.items():
        assert value.shape == tuple(sizes[axis] for axis in AXES[Site.parse(name).name]), name
        assert value[np.isfinite(value)].std() > 0.005, f"{name} hardly varies; this checkpoint could hide a mistake"


def test_every_family_offers_what_the_table_says(model: ReferenceModel, sites: dict[str, Array]) -> None:
    offered = {Site.parse(name).name for name in sites} & set(LAYER_SITES)
    experts, mlp = {"router_logits", "expert_weights"}, {"mlp_gate", "mlp_up", "mlp_act"}
    missing = mlp if model.architecture == "gpt_oss" else experts
    missing = experts | {"mlp_up"} if model.architecture == "gpt2" else missing
    assert set(LAYER_SITES) - offered == missing


def test_the_residual_stream_adds_up(model: ReferenceModel, sites: dict[str, Array]) -> None:
    close(sites["embed"], sites["resid_pre.0"])
    for i in range(len(model.layers)):
        close(sites[f"resid_mid.{i}"], sites[f"resid_pre.{i}"] + sites[f"attn_out.{i}"])
        close(sites[f"resid_post.{i}"], sites[f"resid_mid.{i}"] + sites[f"mlp_out.{i}"])
        if i + 1 < len(model.layers):
            close(sites[f"resid_post.{i}"], sites[f"resid_pre.{i + 1}"])


def test_norms_lead_from_the_stream_to_the_blocks(model: ReferenceModel, sites: dict[str, Array]) -> None:
    for i, layer in enumerate(model.layers):
        close(sites[f"attn_in.{i}"], layer.attn_norm(sites[f"resid_pre.{i}"]))
        close(sites[f"mlp_in.{i}"], layer.mlp_norm(sites[f"resid_mid.{i}"]))
    close(sites["final_norm"], model.final_norm(sites[f"resid_post.{len(model.layers) - 1}"]))


def test_probabilities_share_one_with_the_sink(model: ReferenceModel, sites: dict[str, Array]) -> None:
    for i, layer in enumerate(model.layers):
        scores, probs, sinks = sites[f"attn_scores.{i}"], sites[f"attn_probs.{i}"], layer.attention.sinks
        share = np.zeros(scores.shape[:2]) if sinks is None else 1 / (1 + np.exp(scores - sinks[:, None, None]).sum(-1))
        close(probs.sum(-1), 1 - share)
        assert (sinks is None) == (model.architecture != "gpt_oss")


def test_masked_keys_are_those_after_the_query_and_before_its_window(
    model: ReferenceModel, sites: dict[str, Array]
) -> None:
    windows = {"mistral": [8, 8, 8], "gemma2": [8, None] * 2, "gemma3_text": [8, None] * 2, "gpt_oss": [8, None] * 2}
    expected = windows.get(model.architecture, [None] * len(model.layers))
    assert [layer.attention.window for layer in model.layers] == expected
    for i, window in enumerate(expected):
        for query in (0, 5, 8, 20):
            first = 0 if window is None else max(0, query - window + 1)
            visible = [first <= key <= query for key in range(len(TOKENS))]
            assert np.array_equal(np.isfinite(sites[f"attn_scores.{i}"][0, query]), visible)
            assert np.array_equal(sites[f"attn_probs.{i}"][3, query] > 0, visible)


def test_scores_are_scaled_products_under_the_cap(model: ReferenceModel, sites: dict[str, Array]) -> None:
    for i, layer in enumerate(model.layers):
        q, k, head = sites[f"q.{i}"], sites[f"k.{i}"], 3
        group = q.shape[1] // k.shape[1]
        scores = q[:, head] @ k[:, head // group].T * layer.attention.scale
        if layer.attention.cap is not None:
            scores = layer.attention.cap * np.tanh(scores / layer.attention.cap)
        visible = np.isfinite(sites[f"attn_scores.{i}"][head])
        close(sites[f"attn_scores.{i}"][head][visible], scores[visible])


def test_values_mix_into_z_and_z_into_the_output(model: ReferenceModel, sites: dict[str, Array]) -> None:
    for i, layer in enumerate(model.layers):
        probs, v, z = sites[f"attn_probs.{i}"], sites[f"v.{i}"], sites[f"z.{i}"]
        group = probs.shape[0] // v.shape[1]
        close(z[:, 2], probs[2] @ v[:, 2 // group])
        out = layer.attention.o(z.reshape(len(TOKENS), -1))
        close(sites[f"attn_out.{i}"], out if layer.attn_post_norm is None else layer.attn_post_norm(out))


def test_neurons_lead_to_the_mlp_output(model: ReferenceModel, sites: dict[str, Array]) -> None:
    for i, layer in enumerate(model.layers):
        mlp = layer.mlp
        if isinstance(mlp, Experts):
            continue
        close(sites[f"mlp_gate.{i}"], mlp.gate(sites[f"mlp_in.{i}"]))
        act = mlp.activation(sites[f"mlp_gate.{i}"]) * sites.get(f"mlp_up.{i}", 1.0)
        close(sites[f"mlp_act.{i}"], act)
        out = mlp.down(sites[f"mlp_act.{i}"])
        close(sites[f"mlp_out.{i}"], out if layer.mlp_post_norm is None else layer.mlp_post_norm(out))


def test_expert_weights_are_a_softmax_over_the_best(model: ReferenceModel, sites: dict[str, Array]) -> None:
    for i, layer in enumerate(model.layers):
        if not isinstance(layer.mlp, Experts):
            continue
        logits, weights = sites[f"router_logits.{i}"], sites[f"expert_weights.{i}"]
        close(logits, layer.mlp.router(sites[f"mlp_in.{i}"]))
        close(weights.sum(-1), 1.0)
        assert ((weights > 0).sum(-1) == 2).all()
        for row, weight in zip(logits, weights, strict=True):
            best = np.sort(row)[-2:]
            close(np.sort(weight)[-2:], np.exp(best) / np.exp(best).sum())


def test_logits_come_from_the_final_norm_under_the_cap(model: ReferenceModel, sites: dict[str, Array]) -> None:
    logits = sites["final_norm"] @ model.unembedding.weight
    cap = model.logit_cap
    assert (cap is not None) == (model.architecture == "gemma2")
    close(sites["logits"], logits if cap is None else cap * np.tanh(logits / cap))


def test_a_later_token_changes_nothing_before_it(model: ReferenceModel, sites: dict[str, Array]) -> None:
    shorter = model.forward(TOKENS[:12])
    np.testing.assert_allclose(shorter, sites["logits"][:12], rtol=1e-9, atol=1e-9)
