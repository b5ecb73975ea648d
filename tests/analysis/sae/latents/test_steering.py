"""Dose and response: the probabilities are those of plain runs, controls move the stream as far, and the figure is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from probewire.analysis.sae.latents.steering import DoseResponse, dose_response, word_ids
from probewire.clients import Client, InvalidArgument, NotFound, capture, edit_latents
from tests.saes import write_sae

SITE = "resid_post.1"
PROMPTS = ["the first prompt", "another one"]
WORDS = {"a": 97, "b": 98}


@pytest.fixture(scope="module")
def folder(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    written = write_sae(tmp_path_factory.mktemp("steering") / "steering", "topk")
    client.load_sae(written)
    yield written
    client.unload_sae("steering")


@pytest.fixture(scope="module")
def directions(folder: Path) -> np.ndarray:
    return load_file(folder / "sae_weights.safetensors")["W_dec"]


@pytest.fixture(scope="module")
def found(client: Client, directions: np.ndarray) -> DoseResponse:
    return dose_response(
        client,
        "steering",
        5,
        directions,
        PROMPTS,
        WORDS,
        unit=2.0,
        strengths=(0, 1, 4),
        controls=[7, 11],
        n_new=4,
        progress=False,
    )


def test_probabilities_are_those_of_plain_runs(client: Client, found: DoseResponse, directions: np.ndarray) -> None:
    norms = np.linalg.norm(directions, axis=1)
    for latent, values in ((5, found.concept), (11, found.controls[11])):
        for i, strength in enumerate(found.strengths):
            edit = {latent: {"add": float(strength * 2.0 * norms[5] / norms[latent])}}
            hooks = [edit_latents(SITE, "steering", edit, spans=[(1, None)])] if strength else []
            total = 0.0
            for prompt in PROMPTS:
                logits = client.run(prompt, hooks=hooks, capture=["logits"]).captures["logits"][-1].astype(np.float64)
                shares = np.exp(logits - logits.max())
                total += float(shares[list(WORDS.values())].sum() / shares.sum())
            assert values[i] == pytest.approx(total / len(PROMPTS), rel=1e-4)


def test_controls_move_the_stream_as_far(client: Client, directions: np.ndarray) -> None:
    norms = np.linalg.norm(directions, axis=1)
    plain = client.run(PROMPTS[0], capture=[SITE]).captures[SITE]
    moved = []
    for latent in (5, 7):
        edit = edit_latents(SITE, "steering", {latent: {"add": float(3.0 * norms[5] / norms[latent])}})
        moved.append(np.linalg.norm(client.run(PROMPTS[0], hooks=edit, capture=[SITE]).captures[SITE] - plain, axis=1))
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-4)


def test_the_perplexity_is_the_unsteered_models(client: Client, found: DoseResponse) -> None:
    made = client.generate(PROMPTS[0], max_new_tokens=4, ignore_eos=True)
    other = client.generate(PROMPTS[1], max_new_tokens=4, ignore_eos=True)
    scores = []
    for one in (made, other):
        read = client.run(list(one.token_ids), capture=[capture("logits", reduce="next_logprob")])
        scores.append(read.captures["logits"][-4:])
    assert found.perplexity[0] == pytest.approx(float(np.exp(-np.concatenate(scores).mean())), rel=1e-4)
    assert found.texts[0] == made.text
    assert found.control_perplexity[0] == found.perplexity[0], "nothing is steered at strength 0"


def test_what_is_said_of_it(found: DoseResponse, tmp_path: Path) -> None:
    rising = DoseResponse(
        1, np.array([0.0, 1, 2]), np.array([0.1, 0.2, 0.9]), {2: np.array([0.1, 0.1, 0.95]), 3: np.zeros(3)},
        np.ones(3), np.ones(3), ("x",), ("", "", ""),
    )  # fmt: skip
    assert (rising.spearman, rising.rank, rising.p_value) == (pytest.approx(1.0), 1, pytest.approx(2 / 3))
    assert "| 2 | 0.9000 | 0.4750 | 0.9500 | 1.0 | 1.0 |" in rising.markdown()
    found.figure(path=tmp_path / "dose.png")
    assert (tmp_path / "dose.png").stat().st_size > 10_000


def test_bad_input(client: Client, directions: np.ndarray) -> None:
    with pytest.raises(InvalidArgument, match="controls are other latents than 5"):
        dose_response(client, "steering", 5, directions, PROMPTS, WORDS, unit=1.0, controls=[5], progress=False)
    for changed, message in (
        ({"directions": directions.T}, r"directions is W_dec, \[d_sae 96, d_in 64\], got \[64, 96\]"),
        ({"directions": directions[:, :10]}, r"got \[96, 10\]"),
        ({"latent": 96}, r"latents \[96\] are outside 0 … 95 of SAE 'steering'"),
        ({"controls": [7, -1]}, r"latents \[-1\] are outside"),
        ({"prompts": "a text"}, "prompts is a list of at least one text, got 'a text'"),
        ({"words": [97]}, "words is each word's token"),
    ):
        given = {"latent": 5, "directions": directions, "prompts": PROMPTS, "words": WORDS, "controls": [7]}
        with pytest.raises(InvalidArgument, match=message):
            dose_response(client, "steering", unit=1.0, progress=False, **(given | changed))
    with pytest.raises(NotFound, match="no SAE 'nobody' is loaded; loaded: steering"):
        dose_response(client, "nobody", 5, directions, PROMPTS, WORDS, unit=1.0, controls=[7], progress=False)
    with pytest.raises(InvalidArgument, match="not one"):
        word_ids(client, ["ab"])
