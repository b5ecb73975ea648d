"""The logit lens: equal to norm and unembedding in numpy, the model's own answer at the last layer, on every family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.attribution import lens
from probewire.analysis.attribution.lens import logit_lens
from probewire.clients import Client, Internal, InvalidArgument
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.tiny_models import tiny_checkpoint

PROMPT = [256, 70, 71, 72, 70, 71]
FAMILIES = ["llama", "gpt2", "gemma2", "gemma3_text", "phi3", "gpt_oss"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def client_of(folder: Path, family: str, backend: str = "torch", **overrides: object) -> Client:
    path = tiny_checkpoint(family, folder, **overrides)
    config = WorkerConfig(model=str(path), id=family, backend=backend, dtype="float32", device="cpu")
    return Client.inprocess(InProcessService(LocalModel(config, path)))


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[Client]:
    with client_of(folder, "llama") as client:
        yield client


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def test_against_norm_and_unembedding_in_numpy(llama: Client) -> None:
    found = logit_lens(llama, PROMPT, k=4, targets=[65, 200])
    streams = llama.run(PROMPT, capture=["resid_post.*"]).stack("resid_post").astype(np.float64)
    weight, unembed = (
        llama.weights(n, progress=False).astype(np.float64) for n in ("model.norm.weight", "lm_head.weight")
    )
    normed = streams / np.sqrt((streams**2).mean(axis=-1, keepdims=True) + 1e-6) * weight
    logits = normed @ unembed.T
    order = np.argsort(-logits, axis=-1)
    assert np.array_equal(found.top_ids, order[:, :, :4])
    chances = softmax(logits)
    assert found.probabilities == pytest.approx(np.take_along_axis(chances, found.top_ids, axis=-1), rel=1e-3, abs=1e-7)
    assert found.target_probabilities == pytest.approx(chances[:, :, [65, 200]], rel=1e-3, abs=1e-9)
    ranks = np.argsort(order, axis=-1)[:, :, [65, 200]]
    assert np.array_equal(found.target_ranks, ranks)
    for token, text in zip(found.top_ids[0].ravel().tolist(), found.top_tokens[0].ravel().tolist(), strict=True):
        assert llama.tokenize([token]).tokens == (text,)


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_the_model(folder: Path, family: str, backend: str) -> None:
    with client_of(folder, family, backend) as client:
        found = logit_lens(client, PROMPT, k=3, targets=[65])
        logits = client.run(PROMPT, capture=["logits"])["logits"].astype(np.float64)
        assert found.layers == tuple(range(client.describe().n_layers))
    chances = softmax(logits)
    best = np.argsort(-logits, axis=-1)[:, :3]
    assert np.array_equal(found.top_ids[-1], best)
    assert found.probabilities[-1] == pytest.approx(np.take_along_axis(chances, best, axis=-1), rel=2e-3)
    assert found.target_probabilities is not None
    assert found.target_probabilities[-1, :, 0] == pytest.approx(chances[:, 65], rel=2e-3, abs=1e-8)


def test_layers_and_positions_are_parts_of_the_whole(llama: Client) -> None:
    whole = logit_lens(llama, PROMPT, targets=[65])
    part = logit_lens(llama, PROMPT, targets=[65], layers=[2, 0], positions=[-1, 1])
    assert part.layers == (2, 0)
    assert part.positions == (1, 5), "in the prompt's order"
    assert part.tokens == tuple(whole.tokens[i] for i in (1, 5))
    rows = np.ix_([2, 0], [1, 5])
    assert np.array_equal(part.top_ids, whole.top_ids[rows])
    assert part.probabilities == pytest.approx(whole.probabilities[rows], rel=1e-4)
    assert part.target_ranks is not None
    assert whole.target_ranks is not None
    assert np.array_equal(part.target_ranks, whole.target_ranks[rows])
    assert part.words.shape == part.best.shape == (2, 2)


@pytest.mark.parametrize(("name", "value"), [("MAX_INPUTS", 2), ("MAX_SENT", 1), ("MAX_RECEIVED", 1)])
def test_many_layers_go_in_several_requests(
    llama: Client, monkeypatch: pytest.MonkeyPatch, name: str, value: int
) -> None:
    whole = logit_lens(llama, PROMPT, targets=[65])
    asked = 0
    run = llama.run

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        return run(*args, **kwargs)

    monkeypatch.setattr(lens, name, value)
    monkeypatch.setattr(llama, "run", counted)
    again = logit_lens(llama, PROMPT, targets=[65])
    assert asked == 4, "the streams, then a request a layer"
    assert np.array_equal(again.top_ids, whole.top_ids)
    assert again.probabilities == pytest.approx(whole.probabilities, rel=1e-4)


def test_a_reading_that_is_not_the_models_own_is_refused(llama: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the last layer in the place of another one must not pass for the lens."""
    init = lens._Reading.__init__

    def misplaced(self: object, *args: object) -> None:
        changed = list(args)
        changed[4] = "resid_post.1"
        init(self, *changed)

    monkeypatch.setattr(lens._Reading, "__init__", misplaced)
    with pytest.raises(Internal, match="gives other logits than the model"):
        logit_lens(llama, PROMPT)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": [3]}, r"layer \[3\] given; allowed: 0 … 2"),
        ({"positions": [6]}, r"position \[6\] given; allowed: -6 … 5"),
        ({"positions": [1, -5]}, "named twice"),
        ({"layers": []}, "layer none given"),
        ({"targets": [100000]}, "target token"),
        ({"k": 0}, "top_k.k"),
    ],
)
def test_bad_input(llama: Client, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        logit_lens(llama, PROMPT, **wrong)


def test_the_default_model_knows_mary_late(default_client: Client) -> None:
    mary = default_client.tokenize(" Mary").token_ids[-1]
    prompt = "When Mary and John went to the store, John gave a drink to"
    found = logit_lens(default_client, prompt, k=1, targets=[mary], positions=[-1])
    assert found.words[-1, 0] == " Mary"
    assert found.best[-1, 0] == pytest.approx(0.92, abs=0.01)  # DESIGN.md section 8
    assert found.target_ranks is not None
    ranks = found.target_ranks[:, 0, 0]
    assert ranks[-1] == 0
    assert ranks[:20].min() > 500
    assert ranks[-3:].max() < 200


def test_the_first_layer_where_a_token_is_on_top() -> None:
    """Layers 4, 0 and 2 at three positions; by hand."""
    ids = np.array([[[7], [7], [1]], [[7], [3], [7]], [[5], [7], [7]]])
    words = np.array([[[" a"], [" a"], ["x"]], [[" a"], ["y"], [" a"]], [["z"], [" a"], [" a"]]], dtype=object)
    found = lens.LogitLens(("p", "q", "r"), (0, 1, 2), (4, 0, 2), ids, words, np.ones(ids.shape))
    for token in (7, " a"):
        assert found.first_top(token).tolist() == [0, 2, 0]
        assert found.first_top(token, to_end=True).tolist() == [4, 2, -1]
    assert found.first_top(5).tolist() == [2, -1, -1]
    assert found.first_top("a").tolist() == [-1, -1, -1]


def test_where_a_real_answer_comes_first(llama: Client) -> None:
    found = logit_lens(llama, PROMPT)
    answer = int(found.top_ids[-1, -1, 0])
    first = found.first_top(answer, to_end=True)[-1]
    assert (found.top_ids[first:, -1, 0] == answer).all()
    assert first == 0 or found.top_ids[first - 1, -1, 0] != answer
