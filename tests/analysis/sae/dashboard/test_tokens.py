"""Promoted tokens against the model's own norm and unembedding; nearest latents against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.sae.dashboard.tokens import nearest, readout, token_effects
from probewire.clients import Client, InvalidArgument, Unsupported, patch
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

FAMILIES = ("llama", "qwen2", "gpt2", "gemma3_text")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tiny_checkpoint(request.param, tmp_path_factory.mktemp("family"))
    with Client.inprocess(InProcessService.create(str(folder), backend="torch", dtype="float32", device="cpu")) as made:
        yield made


def directions(n: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, width)).astype(np.float32)


def own_logits(client: Client, rows: np.ndarray) -> np.ndarray:
    """[row, vocab]: what the model says of a stream that is one direction alone."""
    last = f"resid_post.{client.describe().n_layers - 1}"
    run = client.run(
        list(range(33, 33 + len(rows))), hooks=[patch(last, value=rows, positions=range(len(rows)))], capture="logits"
    )
    return run["logits"].astype(np.float64)


def test_against_the_models_own_head(model: Client) -> None:
    """Of d and −d alone in the stream: half their difference is free of biases, and a multiple of the linear effect."""
    rows = directions(6, model.describe().d_model)
    odd = (own_logits(model, rows) - own_logits(model, -rows)) / 2
    expected = odd - odd.mean(axis=1, keepdims=True)
    found = readout(model, "resid_post.1").effects(rows)
    for own, linear in zip(expected, found.astype(np.float64), strict=True):
        scale = (own @ linear) / (linear @ linear)
        assert scale > 0
        assert own == pytest.approx(scale * linear, abs=1e-4 * np.abs(own).max())


def test_the_tokens_are_those_with_the_largest_and_smallest_logits(client: Client) -> None:
    rows = directions(5, 64)
    read = readout(client, "resid_post.0")
    effects = token_effects(rows, read, k=4)
    for row, logits in enumerate(own_logits(client, rows)):
        assert effects.promoted[row].tolist() == np.argsort(-logits)[:4].tolist()
        assert effects.suppressed[row].tolist() == np.argsort(logits)[:4].tolist()
    whole = read.effects(rows)
    assert effects.promoted_by == pytest.approx(np.take_along_axis(whole, effects.promoted, axis=1))
    assert effects.suppressed_by == pytest.approx(np.take_along_axis(whole, effects.suppressed, axis=1))
    assert whole.mean(axis=1) == pytest.approx(np.zeros(5), abs=1e-5)


def test_sites_off_the_stream_have_none(client: Client) -> None:
    with pytest.raises(Unsupported, match="not added to the residual stream"):
        readout(client, "mlp_act.1")


def test_a_norm_in_between_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint("gemma2", tmp_path)
    with Client.inprocess(InProcessService.create(str(folder), backend="torch", dtype="float32", device="cpu")) as made:
        with pytest.raises(Unsupported, match="puts a norm between"):
            readout(made, "mlp_out.1")
        assert readout(made, "resid_post.1").unembedding.shape[1] == 64


def test_directions_of_another_width(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="reads width 64"):
        token_effects(directions(2, 32), readout(client, "resid_post.1"))


def test_nearest_against_brute_force() -> None:
    w_dec = directions(700, 16)
    w_dec[5] = 0
    w_dec[9] = -2 * w_dec[8]
    chosen = np.array([0, 5, 8, 699])
    ids, found = nearest(w_dec, chosen, k=3)
    norms = np.linalg.norm(w_dec, axis=1)
    for row, latent in enumerate(chosen.tolist()):
        cosine = (w_dec @ w_dec[latent]) / np.maximum(norms * norms[latent], 1e-30)
        cosine[latent] = -np.inf
        assert found[row] == pytest.approx(np.sort(cosine)[::-1][:3], abs=1e-6)
        assert latent not in ids[row]
    assert 9 not in ids[2], "the opposite direction is not near"
    assert nearest(w_dec[:2], np.array([0]), k=5)[0].tolist() == [[1]]
    assert nearest(w_dec[:1], np.array([0]))[0].shape == (1, 0)
