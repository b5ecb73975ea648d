"""Forgetting measured on texts, on the planted model: x says t after itself, and latent "right" is what says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.unlearning.text_forgetting import TextForgetting, text_forgetting
from probewire.clients import Client, FailedPrecondition, InvalidArgument, edit_latents
from probewire.server.worker.inprocess import InProcessService
from tests.analysis.sae.planted_letters import (
    FORGET_TEXTS,
    LATENTS,
    LETTERS,
    RETAIN_TEXTS,
    SITE,
    plant,
    save_planted_sae,
    save_untrained_sae,
)
from tests.tiny_models import tiny_checkpoint

FORGET_HELD, RETAIN_HELD = ["axtcxtdxt", "exteaxt"], ["acdgh", "hgfeb", "babab"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("letters")
    made = plant(tiny_checkpoint("llama", folder), folder / "planted")
    with Client.inprocess(InProcessService.create(str(made), backend="torch", dtype="float32", device="cpu")) as client:
        yield client


@pytest.fixture
def sae(planted: Client, tmp_path: Path) -> Callable[..., Path]:
    return lambda *live: save_planted_sae(planted, tmp_path / "-".join(live), live)


def run(client: Client, folder: Path, **options: Any) -> TextForgetting:
    given: dict[str, Any] = {
        "forget_texts": FORGET_TEXTS,
        "retain_texts": RETAIN_TEXTS,
        "forget_held": FORGET_HELD,
        "retain_held": RETAIN_HELD,
        "n_latents": 1,
        "multipliers": (1.0, 5.0),
        "progress": False,
    }
    return text_forgetting(client, folder, **{**given, **options})


def loss(client: Client, text: str, hooks: Any = ()) -> float:
    """Mean −log p of all tokens but the first, from the logits themselves."""
    ids = client.tokenize(text).token_ids
    logits = np.asarray(client.run(text, hooks=hooks, capture=["logits"], progress=False)["logits"], dtype=np.float64)
    said = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    return -float(np.mean([said[at - 1, ids[at]] for at in range(1, len(ids))]))


def test_the_right_latent_costs_its_own_corpus_alone(planted: Client, sae: Callable[..., Path]) -> None:
    folder = sae("right", *LETTERS)
    found = run(planted, folder)
    assert found.latents == (0,)
    assert found.multipliers == (0.0, 1.0, 5.0)
    assert not found.forget[0].any()
    assert not found.retain.any(), "x is nowhere in the retain texts, so nothing fires and nothing changes"
    assert not found.reaches
    info = planted.load_sae(folder, name="by-hand")
    try:
        for row, multiplier in ((1, 1.0), (2, 5.0)):
            hook = edit_latents(SITE, info.name, {0: {"set": -multiplier, "active": True}}, spans=[(1, None)])
            expected = [loss(planted, text, [hook]) - loss(planted, text) for text in FORGET_HELD]
            np.testing.assert_allclose(found.forget[row], expected, rtol=1e-3, atol=1e-6)
    finally:
        planted.unload_sae("by-hand")
    assert found.score == pytest.approx(found.forget[2].mean())
    assert found.score > 0.5
    [control] = found.control_scores
    assert abs(control) < 1e-3
    low, high = found.interval
    assert low <= found.score <= high
    told = found.to_json()
    assert (told["score"], told["latents"]) == (found.score, [0])


@pytest.mark.parametrize("live", ["harmless", "everywhere"])
def test_what_does_not_forget_scores_zero(planted: Client, sae: Callable[..., Path], live: str) -> None:
    found = run(planted, sae(live), control_draws=0)
    assert found.latents == ((LATENTS.index(live),) if live == "harmless" else ())
    assert abs(found.score) < 1e-3


def test_the_score_is_read_at_equal_cost() -> None:
    """(0, 0), (1, .04), (3, .08): the cost .05 is reached a quarter of the way from the second to the third."""

    def at(retain: list[float], cost: float) -> TextForgetting:
        forget = np.array([[0.0], [1.0], [3.0]])
        return TextForgetting((0, 1, 2), (4,), forget, np.array(retain)[:, None], (), cost)

    assert at([0, 0.04, 0.08], 0.05).score == pytest.approx(1.5)
    assert at([0, 0.04, 0.08], 0.02).score == pytest.approx(0.5)
    assert at([0, 0.04, 0.08], 0.9).score == 3.0
    assert not at([0, 0.04, 0.08], 0.9).reaches
    assert at([0, -0.1, 0.05], 0.05).score == pytest.approx(3.0)


def test_what_was_never_trained_is_not_scored(planted: Client, tmp_path: Path) -> None:
    folder = save_untrained_sae(tmp_path / "untrained")
    with pytest.raises(FailedPrecondition, match="allow_untrained=True"):
        run(planted, folder)
    assert run(planted, folder, allow_untrained=True).latents == ()


def test_what_cannot_be_measured_is_refused(planted: Client, sae: Callable[..., Path]) -> None:
    folder = sae("right")
    for options, said in (
        ({"forget_held": []}, "one held-out text of each"),
        ({"multipliers": (5.0, 1.0)}, "multipliers are 0 or more and rise"),
        ({"cost": 0.0}, "cost is above 0"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            run(planted, folder, **options)
