"""Gradients: identities of linearised backward passes, torch against mlx, and a model that stays as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.clients import Client, hook
from probewire.protos.edits import Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import Coordinate, Kl, Logit, LogitDifference, LogProb, Metric, TopLogits
from probewire.protos.model import Input
from tests.parity.opened import OTHER, RULES, TOKENS, Opened, at_all, backend_of, both, gap
from tests.tiny_models import FAMILIES

EXACT = 1e-12
"""Relative error of identities in float64."""
PARITY = {"float32": 1e-4, "float64": 1e-4}
"""Relative error of mlx against torch: on the CPU, mlx computes rotary embeddings and softmax in float32 always."""
RANKS = 0.999
"""Spearman's coefficient of mlx's gradients against torch's, in float32."""

HOMOGENEOUS = ("llama", "qwen3", "smollm3", "gemma3_text", "phi3")
"""Families without biases and softcaps: with all four rules the metric is linear in the embeddings, without a constant."""


def _share(client: Client, rules: tuple[str, ...], metric: Metric) -> float:
    """Σ e·∂m/∂e over the embeddings ÷ m."""
    found = client.gradients(TOKENS, metric, at="embed", capture="embed", rules=rules)
    return float((found["embed"] * found.gradients["embed"]).sum() / found.metric)


@both
@pytest.mark.parametrize("family", HOMOGENEOUS)
def test_with_all_rules_the_embeddings_account_for_the_metric(opened: Opened, family: str, backend: str) -> None:
    client = opened(family, backend)
    for metric in (Logit(7), LogitDifference((7, 8), (200,), 9), TopLogits(5, centred=True), Logit(3, -2, True)):
        assert abs(_share(client, RULES, metric) - 1) <= EXACT


@both
@pytest.mark.parametrize("missing", RULES)
def test_without_any_one_rule_they_do_not(opened: Opened, backend: str, missing: str) -> None:
    rules = tuple(rule for rule in RULES if rule != missing)
    assert abs(_share(opened("llama", backend), rules, Logit(7)) - 1) > 1e-3


@both
@pytest.mark.parametrize("family", HOMOGENEOUS)
def test_direct_edges_into_a_neuron_sum_to_its_value(opened: Opened, family: str, backend: str) -> None:
    client = opened(family, backend)
    values = client.run(TOKENS, capture="mlp_act.*").stack("mlp_act")
    for layer, position, unit in ((2, 13, 5), (2, 6, 70), (1, 9, 40), (0, 4, 3)):
        target = Coordinate(f"mlp_act.{layer}", position, unit)
        earlier = ["embed", *(f"mlp_act.{below}" for below in range(layer))]
        found = client.gradients(TOKENS, target, at=earlier, capture=earlier, rules=RULES, direct=True)
        edges = sum(float((found[site] * found.gradients[site]).sum()) for site in earlier)
        assert found.metric == pytest.approx(values[layer, position, unit], rel=EXACT)
        assert abs(edges - found.metric) <= EXACT * abs(found.metric), (layer, position, unit)


@both
@pytest.mark.parametrize("family", HOMOGENEOUS)
def test_direct_edges_into_a_logit_sum_to_it(opened: Opened, family: str, backend: str) -> None:
    client, sources = opened(family, backend), ["embed", "mlp_act.*"]
    for metric in (Logit(11), LogitDifference((3,), (4, 5), 8)):
        found = client.gradients(TOKENS, metric, at=sources, capture=sources, rules=RULES, direct=True)
        edges = sum(float((found[site] * found.gradients[site]).sum()) for site in found.sites)
        assert abs(edges - found.metric) <= EXACT * abs(found.metric)
        total = client.gradients(TOKENS, metric, at="mlp_act.0", rules=RULES).gradients["mlp_act.0"]
        assert gap(found.gradients["mlp_act.0"], total) > 1e-2, "an early neuron acts through later ones, too"


@both
@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gemma2"])
def test_so_is_an_edited_one(opened: Opened, family: str, backend: str) -> None:
    client = opened(family, backend, "float32")
    for site in (
        "mlp_gate.1",
        "mlp_act.1",
        "mlp_up.1",
        "mlp_in.0",
        "q.1",
        "k.0",
        "resid_mid.1",
        "attn_probs.2",
        "logits",
    ):
        if client.describe().site(site.split(".")[0]) is None:
            continue
        edits, read = [hook(site, Scale(-1.5), positions=[4, 9, -1])], list(dict.fromkeys(("logits", site)))
        plain, untouched = client.run(TOKENS, capture=read, hooks=edits), client.run(TOKENS, capture=read)
        assert not np.array_equal(plain["logits"], untouched["logits"])
        for rules in ((), client.describe().rules):
            found = client.gradients(TOKENS, Logit(7), at="embed", capture=read, hooks=edits, rules=rules)
            assert np.array_equal(found["logits"], plain["logits"]), (site, rules)
            assert np.array_equal(found[site], plain[site]), (site, rules)
            assert found.gradients["embed"].any()


@both
@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_is_a_runs_to_the_bit(opened: Opened, family: str, backend: str) -> None:
    client = opened(family, backend, "float32")
    for at in (["embed"], ["resid_mid.*", "mlp_out.*", "v.*"], ["embed", "attn_probs.*"]):
        plain = client.run(TOKENS, capture=["logits", *at])
        for rules in ((), client.describe().rules):
            rules = tuple(rule for rule in rules if rule != "ah" or "attn_probs.*" not in at)
            found = client.gradients(TOKENS, Logit(7), at=at, capture=["logits", *at], rules=rules)
            assert np.array_equal(found["logits"], plain["logits"]), (at, rules)
            for site in plain.sites:
                assert np.array_equal(found[site], plain[site]), (site, rules)
            assert found.metric == plain["logits"][-1, 7]


# ---- one backend against the other -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "dtype"), [(f, d) for f in FAMILIES for d in PARITY])
def test_mlx_gives_what_torch_gives(opened: Opened, family: str, dtype: str) -> None:
    one, other = (opened(family, backend, dtype) for backend in ("torch", "mlx"))
    inputs: dict[str, Any] = {"own": TOKENS, "other": Input(token_ids=tuple(OTHER), source_only=True)}
    site = "mlp_out.2" if family == "gpt_oss" else "mlp_act.2"
    metrics = [Kl("other", -2, 5), TopLogits(4, 10, centred=True), LogProb(40, 11), Coordinate(site, 9, 5)]
    for rules in ((), tuple(rule for rule in one.describe().rules if rule != "ah")):
        for metric in metrics:
            found, expected = (
                client.gradients(inputs, metric, at=at_all(client.describe()), rules=rules).inputs["own"]
                for client in (other, one)
            )
            assert found.metric == pytest.approx(expected.metric, rel=PARITY[dtype], abs=1e-5)
            assert found.gradients.sites == expected.gradients.sites
            for name in expected.gradients.sites:
                assert gap(found.gradients[name], expected.gradients[name]) <= PARITY[dtype], (name, metric, rules)


def test_both_offer_the_same(opened: Opened) -> None:
    for family in FAMILIES:
        one, other = (opened(family, backend, "float32").describe() for backend in ("torch", "mlx"))
        assert one.rules == other.rules
        assert [s.name for s in one.sites if s.gradients] == [s.name for s in other.sites if s.gradients]


@pytest.mark.parametrize("rules", [(), RULES])
def test_both_rank_neurons_alike(opened: Opened, rules: tuple[str, ...]) -> None:
    one, other = (
        client.gradients(TOKENS, TopLogits(5), at="mlp_act.*", rules=rules).gradients.stack("mlp_act").ravel()
        for client in (opened("llama", backend, "float32") for backend in ("torch", "mlx"))
    )
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (one, other)]  # only zeros are tied
    assert np.asarray(np.corrcoef(ranks))[0, 1] >= RANKS


# ---- rules that a model cannot honour, and what a gradient leaves behind ---------------------------------------------


@both
def test_mixtures_of_experts_offer_no_rules_for_mlps(opened: Opened, backend: str) -> None:
    client = opened("gpt_oss", backend, "float32")
    assert client.describe().rules == ("ln", "ah")
    for rule in ("identity", "half"):
        with pytest.raises(
            InvalidArgument, match=rf"rules \['{rule}'\] cannot be honoured on gpt_oss.*allowed here: ln, ah"
        ):
            client.gradients(TOKENS, Logit(7), at="embed", rules=("ln", rule))
    assert client.gradients(TOKENS, Logit(7), at="embed", rules=("ln", "ah")).gradients["embed"].any()
    for site in ("router_logits.0", "expert_weights.1"):
        with pytest.raises(InvalidArgument, match="gradient"):
            client.gradients(TOKENS, Logit(7), at=site)


@both
def test_rule_ah_leaves_nothing_to_ask_of_attention(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    for site in ("q.0", "k.*", "attn_scores.1", "attn_probs.1"):
        with pytest.raises(InvalidArgument, match="with rule ah attention patterns are constant"):
            client.gradients(TOKENS, Logit(7), at=site, rules=("ah",))
    assert client.gradients(TOKENS, Logit(7), at="v.1", rules=("ah",)).gradients["v.1"].any()


def _tree(client: Client) -> dict[str, tuple[Any, ...]]:
    """Every module: its type, the hooks on it, and what is set on the instance itself."""
    model = backend_of(client).model
    found: dict[str, tuple[Any, ...]] = {}
    for name, module in model.named_modules():
        kept = [getattr(module, kind, ()) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        own = "forward" in vars(module)
        found[name] = (id(module), type(module), *map(len, kept), own)
    return found


@both
@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "float32"), ("llama", "float64"), ("gpt2", "float32"), ("gemma2", "float64"), ("gpt_oss", "float32")],
)
def test_the_model_is_left_as_it_was(opened: Opened, family: str, backend: str, dtype: str, faulty: Scale) -> None:
    client = opened(family, backend, dtype)
    info = client.describe()
    client.run(TOKENS)  # taps stay until a forward asks for others
    before, plain = _tree(client), client.run(TOKENS, capture="logits")["logits"]
    client.gradients(TOKENS, Logit(7), at=at_all(info), rules=[rule for rule in info.rules if rule != "ah"])
    client.gradients(TOKENS, Logit(7), at="embed", rules=info.rules, direct=True)
    client.gradients(TOKENS, Coordinate("resid_mid.1", 5, 3), at="embed", rules=info.rules)
    with pytest.raises(InvalidArgument, match=r"attn_out\.1"):
        client.gradients(TOKENS, Logit(7), at="embed", hooks=[hook("attn_out.1", faulty)], rules=("ln",))
    client.run(TOKENS)
    assert _tree(client) == before
    assert np.array_equal(client.run(TOKENS, capture="logits")["logits"], plain)
