"""A concept that is known to lie in one place is found there, and taking it out takes it away."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.ablation import Localisation, ablate_feature, localise
from probewire.analysis.ablation.localise import read_rows
from probewire.clients import Add, Client, Hook, ProjectOut, Replace, Tensor, Zeros
from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import LogitDifference
from tests.analysis.ablation.planted import CUE, LAYER, NEURON, OTHER, SAYS, texts

STEMS = texts(40, "", seed=11)
PROMPTS = [stem + end for stem in STEMS for end in (CUE, OTHER)]
LABELS = [int(end == CUE) for _ in STEMS for end in (CUE, OTHER)]
PAIRS = [stem for stem in STEMS for _ in range(2)]


@pytest.fixture(scope="module")
def stream(client: Client) -> Localisation:
    """Which of two letters ends the text, in the residual stream."""
    return localise(client, PROMPTS, LABELS, site="resid_pre", groups=PAIRS)


@pytest.fixture(scope="module")
def neurons(client: Client) -> Localisation:
    return localise(client, PROMPTS, LABELS, site="mlp_act", groups=PAIRS)


def test_the_split_keeps_pairs_together(stream: Localisation) -> None:
    assert sorted([*stream.train, *stream.test]) == list(range(len(PROMPTS)))
    assert not {PAIRS[i] for i in stream.train} & {PAIRS[i] for i in stream.test}
    assert len(stream.test) == 24
    inputs, labels = stream.held_out()
    assert list(inputs) == [str(i) for i in stream.test]
    assert labels.tolist() == [LABELS[i] for i in stream.test]


def test_readers_find_the_last_letter_and_shuffled_ones_do_not(stream: Localisation) -> None:
    accuracy = stream.accuracy
    assert accuracy.dims == ("method", "layer")
    assert accuracy.sel(method="probe", layer=0).item() == 1.0
    assert accuracy.sel(method="difference of means", layer=0).item() == 1.0
    assert accuracy.sel(method="probe, shuffled labels").mean().item() == pytest.approx(0.5, abs=0.15)
    assert stream.best_layer == 0
    assert "best layer 0: difference of means 1.00" in repr(stream)


def test_rows_are_the_last_tokens(client: Client, stream: Localisation) -> None:
    np.testing.assert_allclose(
        stream.rows[1][3], client.run(PROMPTS[3], capture="resid_pre.1")["resid_pre.1"][-1], rtol=1e-5
    )
    inputs = dict(list(stream.inputs.items())[:2])
    pooled = read_rows(client, inputs, ["z.1"], "mean")["z.1"]
    whole = client.run(PROMPTS[1], capture="z.1")["z.1"].reshape(len(PROMPTS[1]) + 1, -1)
    np.testing.assert_allclose(pooled[1], whole.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_the_direction_is_the_difference_of_the_embeddings(client: Client, stream: Localisation) -> None:
    """At layer 0 the row is the last letter's embedding alone, so that the answer is known to rounding."""
    embedding = client.weights("model.embed_tokens.weight", progress=False)
    known = embedding[client.token(CUE)] - embedding[client.token(OTHER)]
    np.testing.assert_allclose(stream.subspace(0)[0], known, atol=1e-5)
    component = stream.subspace(0, "pca", 1)[0]
    assert abs(component @ known) / np.linalg.norm(known) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["difference of means", "pca"])
def test_projecting_it_out_leaves_nothing(client: Client, stream: Localisation, method: str) -> None:
    """Both letters become the same row, so that pairs of texts can no longer be told apart at all; random directions
    leave the letters apart."""
    metric = LogitDifference((client.token(SAYS),), (client.token("u"),))
    test = ablate_feature(client, stream, 0, method=method, metric=metric)
    assert test.values.axes["ablation"] == ("none", "project out", "mean", "random directions")
    left = test.values
    assert left.sel(measure="readout accuracy", ablation="none").item() == 1.0
    assert left.sel(measure="readout AUROC", ablation="project out").item() == pytest.approx(0.5, abs=0.02)
    assert left.sel(measure="readout AUROC", ablation="mean").item() == pytest.approx(0.5, abs=0.02)
    assert left.sel(measure="readout AUROC", ablation="random directions").item() > 0.95
    assert abs(left.sel(measure="separation", ablation="none").item()) > 0.1
    assert left.sel(measure="separation", ablation="project out").item() == pytest.approx(0, abs=1e-3)
    assert abs(left.sel(measure="separation", ablation="random directions").item()) > 0.1
    assert test.z.sel(measure="readout AUROC", ablation="project out").item() < -5
    assert "1 direction by" in repr(test)


def test_the_planted_neuron_is_found_and_carries_the_answer(client: Client, neurons: Localisation) -> None:
    assert neurons.neurons(LAYER, 1) == (NEURON,)
    metric = LogitDifference((client.token(SAYS),), (client.token("u"),))
    test = ablate_feature(client, neurons, LAYER, neurons=1, metric=metric, positions=-1)
    assert test.values.axes["ablation"] == ("none", "zero", "mean", "random units")
    none, zero, mean, random = test.values.sel(measure="separation").values
    assert none - zero > 2
    assert none - mean > 2
    assert random == pytest.approx(none, abs=0.2)
    assert test.z.sel(measure="separation", ablation="zero").item() < -5
    assert len(test.controls["separation"]) == 10


def test_numbers_are_those_of_runs(client: Client, stream: Localisation) -> None:
    """Layers of one's own choice, each with its own direction, against runs and numpy."""
    token = client.token(SAYS), client.token("u")
    test = ablate_feature(client, stream, [1, 2], method="probe", metric=LogitDifference(token[:1], token[1:]))
    hooks: dict[str, list[Hook]] = {"none": [], "project out": [], "mean": []}
    for layer in (1, 2):
        direction = stream.subspace(layer, "probe")[0]
        unit = direction / np.linalg.norm(direction)
        back = unit * (unit @ stream.rows[layer][stream.train].mean(axis=0))
        remove = Hook(f"resid_pre.{layer}", ProjectOut(Tensor.of(unit[None].astype(np.float32))))
        hooks["project out"].append(remove)
        hooks["mean"] += [remove, Hook(f"resid_pre.{layer}", Add(Tensor.of(back.astype(np.float32))))]
    for kind, plan in hooks.items():
        found: dict[int, list[float]] = {0: [], 1: []}
        for i in stream.test:
            logits = client.run(PROMPTS[i], hooks=plan, capture="logits")["logits"][-1].astype(np.float64)
            found[LABELS[i]].append(logits[token[0]] - logits[token[1]])
        expected = np.mean(found[1]) - np.mean(found[0])
        assert test.values.sel(measure="separation", ablation=kind).item() == pytest.approx(
            expected, rel=1e-3, abs=1e-3
        )


def test_neuron_ablations_are_those_of_runs(client: Client, neurons: Localisation) -> None:
    token = client.token(SAYS), client.token("u")
    units = neurons.neurons(1, 3)
    test = ablate_feature(
        client, neurons, 1, neurons=3, metric=LogitDifference(token[:1], token[1:]), readout="final_norm"
    )
    assert test.readout == "final_norm"
    plan = [Hook("mlp_act.1", Replace(Zeros(), units=units))]
    found: dict[int, list[float]] = {0: [], 1: []}
    for i in neurons.test:
        logits = client.run(PROMPTS[i], hooks=plan, capture="logits")["logits"][-1].astype(np.float64)
        found[LABELS[i]].append(logits[token[0]] - logits[token[1]])
    expected = np.mean(found[1]) - np.mean(found[0])
    assert test.values.sel(measure="separation", ablation="zero").item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_what_is_refused(client: Client, stream: Localisation) -> None:
    with pytest.raises(InvalidArgument, match="labels must be 0 or 1, one for each of the 2 prompts"):
        localise(client, PROMPTS[:2], [0, 2])
    with pytest.raises(InvalidArgument, match="labels must be 0 or 1"):
        localise(client, PROMPTS[:2], [0, 1, 1])
    with pytest.raises(InvalidArgument, match="too few examples of one label to train on"):
        localise(client, PROMPTS[:4], [0, 1, 0, 1])
    for site in ("resid_pre.1", "logits", "attn_probs", "nothing"):
        with pytest.raises(InvalidArgument, match="give a kind of site that layers have"):
            localise(client, PROMPTS, LABELS, site=site)
    with pytest.raises(InvalidArgument, match=r"layers \[7\] of resid_pre; allowed: 0 … 2"):
        localise(client, PROMPTS, LABELS, site="resid_pre", layers=[0, 7])
    with pytest.raises(InvalidArgument, match="held_out is a share"):
        localise(client, PROMPTS, LABELS, held_out=1.5)
    with pytest.raises(InvalidArgument, match="3 groups for 80 prompts"):
        localise(client, PROMPTS, LABELS, groups=[1, 2, 3])
    with pytest.raises(InvalidArgument, match='pool is "last" or "mean"'):
        localise(client, PROMPTS, LABELS, pool="max")
    with pytest.raises(InvalidArgument, match="layer 9 of resid_pre was not read"):
        stream.feature(9)
    with pytest.raises(InvalidArgument, match="probe gives 1 to 1 directions here, not 2"):
        stream.subspace(0, "probe", 2)
    with pytest.raises(InvalidArgument, match="n_controls must be 5 or more"):
        ablate_feature(client, stream, n_controls=2)
    with pytest.raises(InvalidArgument, match="k must be in 1 … 64"):
        stream.neurons(0, 65)
