"""The consistency regulariser: its value, its gradient, and that λ = 0 is plain training to the bit."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.sae.data.batches import ArrayBatches
from probewire.analysis.sae.model.configs import TrainConfig
from probewire.analysis.sae.seeds.cells import Condition
from probewire.analysis.sae.seeds.stability import best_matches
from probewire.analysis.sae.training import consistency as module
from probewire.analysis.sae.training.array_trainer import ArrayTrainer
from probewire.analysis.sae.training.consistency import Consistency, consistency_loss
from probewire.analysis.sae.training.training import train
from probewire.analysis.sae.training.training_run import TrainingRun
from probewire.protos.errors import InvalidArgument
from tests.analysis.sae.planted_data import planted

TEMPLATE = TrainConfig(architecture="topk", d_sae=24, k=3, steps=1, batch_size=256, lr=3e-3)
CONDITION = Condition(3, 24, 6)


def unit(rows: torch.Tensor) -> torch.Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def directions(n: int, d_in: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return planted(4000)[0]


def test_the_loss_is_one_less_the_mean_of_the_best_cosines() -> None:
    decoder, reference = directions(9, 5, 0), directions(7, 5, 1)
    best = best_matches(decoder.numpy(), reference.numpy())[0]
    assert consistency_loss(decoder, unit(reference)).item() == pytest.approx(1 - best.mean(), abs=1e-6)
    assert consistency_loss(-2 * reference, unit(reference)).item() == pytest.approx(0.0, abs=1e-12)


def test_its_gradient_is_that_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 2 * 8 * 7)  # two rows a block
    decoder, reference = directions(9, 5, 0).requires_grad_(), unit(directions(7, 5, 1))
    consistency_loss(decoder, reference).backward()
    assert decoder.grad is not None
    step, slopes = 1e-6, torch.zeros_like(decoder)
    for i in range(9):
        for j in range(5):
            ends = list[float]()
            for sign in (1, -1):
                moved = decoder.detach().clone()
                moved[i, j] += sign * step
                ends.append(consistency_loss(moved, reference).item())
            slopes[i, j] = (ends[0] - ends[1]) / (2 * step)
    assert slopes.abs().max() > 1e-2
    torch.testing.assert_close(decoder.grad, slopes, atol=1e-8, rtol=1e-6)


def test_the_whole_loss_has_the_sum_of_both_gradients(rows: np.ndarray) -> None:
    """What a step of sae-lens's trainer differentiates, in float64."""
    step_input: Any = import_module("sae_lens.saes.sae").TrainStepInput

    def step(strength: float | None) -> tuple[Any, Any]:
        added = None if strength is None else Consistency(directions(10, 16, 2).numpy(), strength)
        sae = TrainingRun(TEMPLATE, 16, {}, Path(), added).sae.to(dtype=torch.float64)
        given = step_input(
            sae_in=torch.from_numpy(rows[:64]).double(),
            coefficients={},
            dead_neuron_mask=None,
            n_training_steps=0,
            is_logging_step=False,
        )
        output = sae.training_forward_pass(given)
        output.loss.backward()
        return sae, output

    (plain, before), (pulled, after) = step(None), step(0.3)
    alone = plain.W_dec.detach().clone().requires_grad_()
    consistency_loss(alone, unit(directions(10, 16, 2))).backward()
    assert alone.grad is not None
    torch.testing.assert_close(pulled.W_dec.grad, plain.W_dec.grad + 0.3 * alone.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(pulled.W_enc.grad, plain.W_enc.grad, rtol=0, atol=0)
    assert after.loss.item() == pytest.approx(before.loss.item() + after.losses[Consistency.name].item(), rel=1e-12)
    assert after.losses["mse_loss"].item() == before.losses["mse_loss"].item()


def test_no_strength_is_plain_training_to_the_bit_and_more_draws_nearer(rows: np.ndarray) -> None:
    reference = ArrayTrainer(rows, TEMPLATE)(CONDITION, 50).decoder
    assert isinstance(reference, np.ndarray)
    found = dict[float | None, np.ndarray]()
    for strength in (None, 0.0, 3.0, 30.0):
        added = None if strength is None else Consistency(reference, strength)
        trained = ArrayTrainer(rows, TEMPLATE, added_loss=added)(CONDITION, 1).decoder
        assert isinstance(trained, np.ndarray)
        found[strength] = trained
    assert np.array_equal(found[None], found[0.0])
    near = [best_matches(found[strength], reference)[0].mean() for strength in (0.0, 3.0, 30.0)]
    assert near == sorted(near)
    assert near[-1] > near[0] + 0.05


def test_a_run_with_it_notes_it_and_draws_its_curve(rows: np.ndarray, tmp_path: Path) -> None:
    def run(name: str, strength: float) -> Any:
        added = Consistency(np.eye(16), strength)
        return train(ArrayBatches(rows, 256), replace(TEMPLATE, steps=30), tmp_path / name, added_loss=added)

    with_pull, without = run("with", 2.0), run("without", 0.0)
    assert with_pull.run.added_loss["name"] == "consistency_loss"
    assert with_pull.run.added_loss["strength"] == 2.0
    assert len(with_pull.run.added_loss["reference_hash"]) == 64
    near = [best_matches(run.sae.w_dec, np.eye(16))[0].mean() for run in (with_pull, without)]
    assert near[0] > near[1] + 0.02
    curve = with_pull.curves.to_dict()["loss/consistency_loss"]
    assert curve[-1] == pytest.approx(2.0 * (1 - near[0]), abs=0.02)
    assert curve[-1] < curve[0]


def test_the_identity_of_a_sweep_knows_it(rows: np.ndarray) -> None:
    one, other, none = (
        ArrayTrainer(rows, TEMPLATE, added_loss=added).identity
        for added in (Consistency(np.eye(16), 1.0), Consistency(np.eye(16), 2.0), None)
    )
    assert one != other != none != one
    assert one == ArrayTrainer(rows, TEMPLATE, added_loss=Consistency(3 * np.eye(16), 1.0)).identity


def test_bad_input_is_refused(rows: np.ndarray) -> None:
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument, match="strength is a finite number of 0 or more"):
            Consistency(np.eye(16), strength)
    with pytest.raises(InvalidArgument, match=r"\[d_ref, d_in\], got shape \[3\]"):
        Consistency(np.zeros(3), 1.0)
    for wrong in (0.0, float("nan")):
        with pytest.raises(InvalidArgument, match="zero or not finite"):
            Consistency(np.full((3, 16), wrong), 0.0)
    for strength in (0.0, 1.0):
        with pytest.raises(InvalidArgument, match=r"\[d_ref, 8\] and the SAE reads width 16"):
            ArrayTrainer(rows, TEMPLATE, added_loss=Consistency(np.eye(8), strength))(CONDITION, 0)
