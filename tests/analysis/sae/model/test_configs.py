"""What a training config takes, refuses, and makes of itself in sae-lens's terms."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from probewire.analysis.sae.model.configs import ARCHITECTURES, TrainConfig, new_sae
from probewire.clients import InvalidArgument

SPARSITY: dict[str, dict[str, Any]] = {
    "topk": {"k": 4},
    "batchtopk": {"k": 3.5},
    "matryoshka": {"k": 4.0},
    "jumprelu": {"l0_coefficient": 0.1},
    "gated": {"l1_coefficient": 0.1},
    "standard": {"l1_coefficient": 0.1},
}


def config(architecture: str = "topk", **options: Any) -> TrainConfig:
    base: dict[str, Any] = {"d_sae": 32, "steps": 50, "batch_size": 8}
    return TrainConfig(**{"architecture": architecture, **base, **SPARSITY.get(architecture, {}), **options})


def test_every_architecture_becomes_the_class_of_sae_lens() -> None:
    made = {name: config(name).sae_config(16) for name in ARCHITECTURES}
    assert {name: one.architecture() for name, one in made.items()} == {
        **{name: name for name in ARCHITECTURES},
        "matryoshka": "matryoshka_batchtopk",
    }
    assert all((one.d_in, one.d_sae, one.device) == (16, 32, "cpu") for one in made.values())
    assert (made["topk"].k, type(made["topk"].k), made["batchtopk"].k) == (4, int, 3.5)
    assert made["matryoshka"].matryoshka_widths == [4, 8, 16, 32]
    assert (made["jumprelu"].l0_coefficient, made["gated"].l1_coefficient) == (0.1, 0.1)


def test_the_rest_reaches_sae_lens_too() -> None:
    jumprelu = config("jumprelu", sparsity_warm_up_steps=7, options={"jumprelu_bandwidth": 0.2}).sae_config(16)
    assert (jumprelu.l0_warm_up_steps, jumprelu.jumprelu_bandwidth) == (7, 0.2)
    assert config(aux_coefficient=0.25).sae_config(16).aux_loss_coefficient == 0.25
    assert config(normalisation="covariance_whitening").sae_config(16).normalize_activations == "covariance_whitening"
    assert config().sae_config(16, {"hook_name": "resid_post.1"}).metadata.hook_name == "resid_post.1"
    trainer = config(lr=2e-3, lr_warm_up_steps=5, lr_decay_steps=9, lr_schedule="cosineannealing").trainer_config()
    assert (trainer.lr, trainer.lr_warm_up_steps, trainer.lr_decay_steps) == (2e-3, 5, 9)
    assert (trainer.total_training_steps, trainer.lr_scheduler_name) == (50, "cosineannealing")


def test_nothing_is_sent_to_weights_and_biases() -> None:
    assert config().trainer_config().logger.log_to_wandb is False


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_config_survives_json(architecture: str) -> None:
    before = config(architecture, lr=1e-3, seed=3)
    assert TrainConfig.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_widths_survive_json_as_a_tuple() -> None:
    before = config("matryoshka", matryoshka_widths=(3, 32))
    assert TrainConfig.from_dict(json.loads(json.dumps(before.to_dict()))) == before
    assert before.sae_config(16).matryoshka_widths == [3, 32]


def test_windows_fit_the_length_of_the_run() -> None:
    assert (config(steps=50).window, config(steps=10**6).window, config(dead_window=3).window) == (10, 1000, 3)
    assert (config(steps=50).log_interval, config(steps=30_000).log_interval) == (1, 100)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal'; allowed: topk, batchtopk"),
        ({"k": None}, "topk needs k"),
        ({"k": 33}, r"k must be in 1 … d_sae = 32, got 33"),
        ({"k": 0}, "k must be a finite number above 0"),
        ({"k": 2.5}, "a whole number for topk; got 2.5"),
        ({"architecture": "batchtopk", "k": 0.5}, "k must be in 1 … 32"),
        ({"k": float("nan")}, "k must be a finite number"),
        ({"d_sae": 0}, "d_sae must be a whole number of at least 1, got 0"),
        ({"d_sae": 32.0}, "d_sae must be a whole number"),
        ({"steps": 0}, "steps must be"),
        ({"steps": True}, "steps must be"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2"),
        ({"lr": 0.0}, "lr must be a finite number above 0"),
        ({"lr": float("inf")}, "lr must be a finite number above 0"),
        ({"seed": -1}, "seed must be"),
        ({"checkpoints": -1}, "checkpoints must be"),
        ({"lr_warm_up_steps": 30, "lr_decay_steps": 20}, "leave nothing of 50 steps"),
        ({"lr_schedule": "linear"}, "lr_schedule 'linear'; allowed: constant, cosineannealing"),
        ({"normalisation": "layer_norm"}, "normalisation 'layer_norm'; allowed: none"),
        ({"l1_coefficient": 1.0}, "topk takes no l1_coefficient; it is for gated, standard"),
        ({"architecture": "jumprelu"}, "jumprelu takes no k; it is for topk"),
        ({"architecture": "jumprelu", "k": None}, "jumprelu needs l0_coefficient"),
        (
            {"architecture": "gated", "k": None, "l1_coefficient": -1.0},
            "l1_coefficient must be a finite number above 0",
        ),
        ({"architecture": "standard", "k": None, "l1_coefficient": 1.0, "aux_coefficient": 1.0}, "takes no aux_coeff"),
        ({"aux_coefficient": -0.1}, "aux_coefficient must be a finite number at least 0"),
        ({"sparsity_warm_up_steps": 5}, "topk has no sparsity loss"),
        ({"matryoshka_widths": (8, 32)}, "topk takes no matryoshka_widths"),
        ({"architecture": "matryoshka", "matryoshka_widths": (32,)}, "in at least two steps"),
        ({"architecture": "matryoshka", "matryoshka_widths": (8, 16)}, "must ascend to d_sae = 32"),
        ({"architecture": "matryoshka", "matryoshka_widths": (8, 8, 32)}, "must ascend"),
        ({"dead_window": 0}, "dead_window must be"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        TrainConfig(**{"architecture": "topk", "d_sae": 32, "steps": 50, "batch_size": 8, "k": 4, **change})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        InvalidArgument, match="options bandwidth are not for jumprelu; allowed: apply_b_dec_to_input, "
    ):
        config("jumprelu", options={"bandwidth": 1}).sae_config(16)
    with pytest.raises(InvalidArgument, match="options k are not for topk"):
        config(options={"k": 7}).sae_config(16)
    with pytest.raises(InvalidArgument, match="a training config has no n_steps"):
        TrainConfig.from_dict({**config().to_dict(), "n_steps": 3})
    with pytest.raises(InvalidArgument, match="the data's width d_in must be a whole number of at least 2, got 1"):
        config().sae_config(1)


@pytest.mark.parametrize("device", ["abacus", "meta:x", "cuda:99"])
def test_devices_that_are_not_there_are_refused(device: str) -> None:
    with pytest.raises(InvalidArgument, match=f"device '{device}' cannot be used here .*; cpu always can"):
        new_sae(config(device=device), 16)


def test_the_seed_alone_decides_the_initial_weights() -> None:
    before = torch.get_rng_state()
    first = new_sae(config(seed=5), 16)
    torch.rand(3)
    again, other = new_sae(config(seed=5), 16), new_sae(config(seed=6), 16)
    assert torch.equal(first.W_dec, again.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)
    torch.set_rng_state(before)
    new_sae(config(), 16)
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator is left alone"
