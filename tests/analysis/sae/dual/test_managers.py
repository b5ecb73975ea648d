"""Managers of latents: their terms against paper, what they change, and that a killed run ends in the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.sae.dual.gates import ClusterGates, FeatureAttention
from probewire.analysis.sae.dual.guided import GradientGuided, latent_importance
from probewire.analysis.sae.dual.managed import Managed
from probewire.analysis.sae.dual.model_signal import ModelSignal
from probewire.analysis.sae.dual.separation import Separation, rate_ratios, separation_auroc, separation_loss
from probewire.analysis.sae.training.training import train
from probewire.analysis.sae.training.training_run import AddedLoss, Manager
from probewire.protos.errors import InvalidArgument
from tests.analysis.sae.dual.conftest import Two


def _signal() -> ModelSignal:
    rows = np.random.default_rng(5).normal(size=(2, 24, 16)).astype(np.float32)
    return ModelSignal(rows[0], rows[1], 12)


MAKERS: dict[str, Callable[[Any], AddedLoss]] = {
    "separation": lambda labels: Separation(labels, 0.05),
    "guided": lambda labels: GradientGuided(labels, 40, every=6, share=0.1),
    "guided by the model": lambda labels: GradientGuided(labels, 40, every=6, share=0.1, signal=_signal()),
    "cluster_gates": lambda labels: ClusterGates(labels, clusters=4, every=7),
    "feature_attention": FeatureAttention,
    "managed": lambda labels: Managed(
        [Separation(labels, 0.05), ClusterGates(labels, clusters=4, every=7)], {"separation": (5, 15)}
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_killed_run_ends_in_the_same_bits(two: Two, tmp_path: Path, name: str) -> None:
    """A checkpoint holds what a manager needs; what is saved encodes without a label, as any SAE."""
    whole = train(two.batches(), two.config, tmp_path / "whole", added_loss=MAKERS[name](two.labels), progress=False)
    added = MAKERS[name](two.labels)
    calls = 0

    class Killed:
        """The same loss, which ends the run at its 33rd step."""

        def __getattr__(self, attribute: str) -> Any:
            return getattr(added, attribute)

        def __call__(self, sae: Any, output: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 33:
                raise KeyboardInterrupt
            return added(sae, output)

    for attribute in ("before", "finish", "state", "load"):
        if hasattr(added, attribute):
            setattr(Killed, attribute, staticmethod(getattr(added, attribute)))
    Killed.name, Killed.note = added.name, added.note  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        train(two.batches(), two.config, tmp_path / "cut", added_loss=Killed(), progress=False)
    cut = train(two.batches(), two.config, tmp_path / "cut", added_loss=MAKERS[name](two.labels), progress=False)
    for attribute in ("w_enc", "w_dec"):
        np.testing.assert_array_equal(getattr(cut.sae, attribute), getattr(whole.sae, attribute))
    assert cut.run.weights_sha256 == whole.run.weights_sha256
    plain = train(two.batches(), two.config, tmp_path / "plain", progress=False)
    assert plain.run.weights_sha256 != whole.run.weights_sha256
    assert whole.sae.encode(two.forget).shape == (600, 24)
    assert whole.sae.architecture == "jumprelu"


def test_separation_is_what_paper_says_and_its_gradient_a_difference_quotient() -> None:
    hidden = torch.tensor([[2.0, 0.0], [1.0, 3.0], [1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    labels, theta = torch.tensor([True, False, False]), torch.tensor(1.0, dtype=torch.float64)
    value = separation_loss(hidden, labels, theta, 0.5)

    def soft(h: float) -> float:
        return 1 / (1 + math.exp(-(h - 1.0) / 0.5))

    first = (soft(2), (soft(1) + soft(1)) / 2)
    second = (soft(0), (soft(3) + soft(-1)) / 2)
    assert value.item() == pytest.approx(first[1] / first[0] + second[0] / second[1], rel=1e-12)
    assert torch.autograd.gradcheck(lambda h: separation_loss(h, labels, theta, 0.5), (hidden,))


def test_importance_is_of_forget_less_of_retain() -> None:
    """L = Σ (f·w)²: ∂L/∂f_j = 2 (f·w) w_j, so f_j ∂L/∂f_j is known."""
    acts = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]], requires_grad=True)
    w = torch.tensor([1.0, -1.0, 0.5])
    found = latent_importance(acts, ((acts @ w) ** 2).sum(), torch.tensor([True, False]))
    forget, retain = 2.0, -2.5  # f·w of each row
    expected = torch.tensor([2 * forget * 1, -(2 * abs(retain) * 3), 2 * forget * 1 - 2 * abs(retain) * 0.5])
    torch.testing.assert_close(found, expected)


def test_guided_latents_begin_at_residuals_of_forget_rows(two: Two) -> None:
    guided = GradientGuided(torch.tensor([True, True, False]), 10, every=1, share=0.5)
    acts = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 3, requires_grad=True)
    weight = torch.eye(4)[:, :3]
    out = acts @ weight
    x = torch.tensor([[1.0, 3.0, 0.0], [1.0, 0.0, 1.0], [9.0, 9.0, 9.0]])

    class Output:
        feature_acts, sae_in, sae_out = acts, x, out
        loss = ((out - x) ** 2).sum()
        losses = {"mse_loss": loss}  # noqa: RUF012 - read once

    class Sae:
        W_dec, W_enc, b_enc = torch.full((4, 3), 2.0), torch.ones(3, 4), torch.ones(4)

    assert guided(Sae, Output).item() == 0
    guided.before(Sae)
    residuals = {(0.0, 1.0, 0.0), (0.0, 0.0, 1.0)}  # of the two forget rows, of length 1
    changed = [row for row in range(4) if not bool((Sae.W_dec[row] == 2).all())]
    assert len(changed) == 2
    assert 0 not in changed, "it fired"
    norm = math.sqrt(12)
    assert {tuple((Sae.W_dec[row] / norm).round(decimals=5).tolist()) for row in changed} == residuals
    assert not Sae.b_enc[changed].any()
    assert guided.changed == 2


def test_gates_start_open_and_are_folded_away(two: Two, tmp_path: Path) -> None:
    gates = ClusterGates(two.labels, clusters=4, every=7, lr=0.05)
    trained = train(two.batches(), two.config, tmp_path / "sae", added_loss=gates, progress=False)
    assert gates.of is not None
    assert sorted(set(gates.of.tolist())) == [0, 1, 2, 3]
    forget, retain = (gates.parameters[name].detach().sigmoid() for name in ("forget", "retain"))
    assert min(float(forget.min()), float(retain.min())) > 0.95, "the error of both corpora wants them open"
    curve = trained.curves["loss/cluster_gates"]
    assert np.isfinite(curve).all()
    p = 1 / (1 + math.exp(-2))
    assert curve[0] == pytest.approx(-0.1 * 8 * (p * math.log(p) + (1 - p) * math.log(1 - p)), rel=1e-5)


def test_managed_weighs_by_its_schedule(two: Two) -> None:
    managed = MAKERS["managed"](two.labels)
    assert isinstance(managed, Managed)
    assert [managed.weight("separation", step) for step in (0, 5, 10, 15, 99)] == [0, 0, 0.5, 1, 1]
    assert managed.weight("cluster_gates", 0) == 1
    assert isinstance(managed, Manager)
    assert not isinstance(Separation(two.labels, 1.0), Manager)


def test_latents_of_one_corpus_are_told_apart_and_labels_of_chance_are_not() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) < 200
    apart = np.stack([(rng.random(400) < np.where(labels, p, q)) for p, q in ((0.4, 0.05), (0.05, 0.4)) * 20], axis=1)
    alike = rng.random((400, 40)) < 0.2
    assert separation_auroc(apart, labels) > 0.99
    assert separation_auroc(alike, labels) == pytest.approx(0.5, abs=0.1)
    fires = np.array([[True], [False], [False], [True]])
    assert rate_ratios(fires, np.array([True, True, True, False]))[0] == pytest.approx(math.log((1.5 / 4) / (1.5 / 2)))


def test_what_cannot_be_managed_is_refused(two: Two) -> None:
    for refused in (
        lambda: Separation(two.labels, -1),
        lambda: Separation(torch.ones(4), 1),
        lambda: GradientGuided(two.labels, 10, share=1.0),
        lambda: ClusterGates(two.labels, clusters=1),
        lambda: FeatureAttention(two.labels, hidden=0),
        lambda: Managed([]),
        lambda: Managed([Separation(two.labels, 1)], {"other": (0, 1)}),
        lambda: separation_auroc(np.zeros((4, 2), dtype=bool), np.array([True, True, False, False])),
    ):
        with pytest.raises(InvalidArgument):
            refused()
