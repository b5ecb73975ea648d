"""Head roles: planted patterns whose scores are known, a loop as oracle, and the default model's known heads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.attribution.direct_logit import direct_logit
from probewire.analysis.circuits.heads import (
    copy_effects,
    duplicate_token,
    head_roles,
    induction,
    name_movers,
    previous_token,
    repeated_tokens,
)
from probewire.clients import Client, InvalidArgument
from probewire.protos.metrics import Logit, LogitDifference
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

TOKENS = [9, 4, 5, 6, 4, 5, 6, 6]
"""Repeats of 4, 5, 6 three later; the last 6 right after another."""


def planted(*heads: dict[int, int]) -> np.ndarray:
    """[1, head, query, key]: each head attends from a query to one key, where told; else to the first token."""
    n = len(TOKENS)
    patterns = np.zeros((1, len(heads), n, n))
    for index, looks in enumerate(heads):
        for query in range(n):
            patterns[0, index, query, looks.get(query, 0)] = 1.0
    return patterns


PREVIOUS = {query: query - 1 for query in range(1, 8)}
DUPLICATE = {4: 1, 5: 2, 6: 3, 7: 6}
INDUCTION = {4: 2, 5: 3, 6: 4, 7: 4}
SINK: dict[int, int] = {}


def test_planted_roles() -> None:
    patterns = planted(PREVIOUS, DUPLICATE, INDUCTION, SINK)
    assert previous_token(patterns).values[0].tolist() == pytest.approx([1.0, 2 / 7, 1 / 7, 1 / 7])
    assert duplicate_token(patterns, TOKENS).values[0].tolist() == pytest.approx([1 / 4, 1.0, 0.0, 0.0])
    assert induction(patterns, TOKENS).values[0].tolist() == pytest.approx([0.0, 0.0, 1.0, 0.0])


def test_against_loops() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, 12).tolist()
    patterns = np.tril(rng.random((2, 3, 12, 12)))
    patterns /= patterns.sum(axis=-1, keepdims=True)
    for scores, keys in (
        (duplicate_token(patterns, tokens), lambda q: [k for k in range(q) if tokens[k] == tokens[q]]),
        (induction(patterns, tokens), lambda q: [k for k in range(1, q) if tokens[k - 1] == tokens[q]]),
    ):
        each = [patterns[:, :, q, keys(q)].sum(axis=-1) for q in range(12) if keys(q)]
        assert scores.values == pytest.approx(np.mean(each, axis=0))
    assert scores.dims == ("layer", "head")


def test_repeated_tokens() -> None:
    prompts = repeated_tokens(range(50), 8, 3, seed=1)
    assert prompts.shape == (3, 17)
    for tokens in prompts.tolist():
        assert tokens[1:9] == tokens[9:]
        assert len(set(tokens)) == 9
    assert not np.array_equal(prompts[0], prompts[1])
    assert np.array_equal(prompts, repeated_tokens(range(50), 8, 3, seed=1))


def test_copy_effects_share_key_value_heads() -> None:
    """Two key-value heads, four heads: heads 0 and 1 read the first."""
    values = np.zeros((1, 2, 2, 3))
    values[0, 1, 0], values[0, 1, 1] = [1, 2, 3], [10, 0, 0]
    directions = np.array([[[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]], dtype=float)
    assert copy_effects(values, directions)[0, :, 1].tolist() == [1.0, 2.0, 10.0, 0.0]
    assert not copy_effects(values, directions)[0, :, 0].any()


def test_bad_input() -> None:
    patterns = planted(PREVIOUS)
    with pytest.raises(InvalidArgument, match="whole prompt"):
        previous_token(patterns[:, :, :2])
    with pytest.raises(InvalidArgument, match="3 token ids for patterns of 8"):
        duplicate_token(patterns, [1, 2, 3])
    with pytest.raises(InvalidArgument, match="no token of the prompt repeats"):
        duplicate_token(patterns, range(8))
    with pytest.raises(InvalidArgument, match="repeats two or more"):
        induction(patterns, [0, 1, 2, 3, 4, 5, 6, 6])
    with pytest.raises(InvalidArgument, match="vocabulary of length"):
        repeated_tokens(range(5), 8, 1)
    with pytest.raises(InvalidArgument, match="kv_head"):
        copy_effects(np.zeros((1, 2, 3, 4)), np.zeros((1, 4, 4)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    with Client.inprocess(InProcessService.create(str(folder), dtype="float32", device="cpu")) as client:
        yield client


PROMPT = [256, 70, 71, 72, 70, 71]


def test_attention_times_copy_is_what_a_head_writes(tiny: Client) -> None:
    """Summed over all keys, attention · copy effect is the head's direct contribution."""
    metric = Logit(65)
    direct = direct_logit(tiny, PROMPT, metric, heads=True)
    run = tiny.run(PROMPT, capture=["attn_probs.*", "v.*"])
    copy = copy_effects(run.stack("v"), direct.head_slopes)
    written = (run.stack("attn_probs")[:, :, direct.position] * copy).sum(axis=-1)
    assert direct.heads is not None
    assert written == pytest.approx(direct.heads.values, abs=1e-4)
    movers = name_movers(tiny, [PROMPT], [metric], [2])
    assert movers.copy.values == pytest.approx(copy[:, :, 2], abs=1e-5)
    assert movers.attention.values == pytest.approx(run.stack("attn_probs")[:, :, -1, 2], abs=1e-6)
    assert movers.score.values == pytest.approx(movers.attention.values * movers.copy.values, abs=1e-6)


def test_name_movers_refuse_what_does_not_pair(tiny: Client) -> None:
    with pytest.raises(InvalidArgument, match="2 prompts, 1 metrics"):
        name_movers(tiny, [PROMPT, PROMPT], [Logit(65)], [2])
    with pytest.raises(InvalidArgument, match="position 5, the prediction at 3"):
        name_movers(tiny, [PROMPT], [Logit(65, position=3)], [5])


def test_the_default_model_has_induction_heads(default_client: Client) -> None:
    roles = head_roles(default_client, length=16, n_prompts=2)
    for role, strong in (("induction", 0.6), ("previous_token", 0.6), ("duplicate_token", 0.4)):
        scores = getattr(roles, role)
        assert scores.shape == (30, 9)
        assert roles.top(role, 1)[0][2] >= strong
        assert np.median(scores.values) < 0.15
    induction_layer = roles.top("induction", 1)[0][0]
    feeders = [layer for layer, _, score in roles.top("previous_token") if score > 0.6 and layer < induction_layer]
    assert feeders, "induction needs a previous-token head below it"
    with pytest.raises(InvalidArgument, match="allowed: previous_token"):
        roles.top("copying")


def test_the_default_model_moves_names(default_client: Client) -> None:
    prompts = [
        "When Mary and John went to the store, John gave a drink to",
        "When Tom and James went to the park, James gave a ball to",
    ]
    names = [(" Mary", " John"), (" Tom", " James")]
    ids = [tuple(default_client.tokenize(name).token_ids[-1] for name in pair) for pair in names]
    movers = name_movers(default_client, prompts, [LogitDifference((good,), (bad,)) for good, bad in ids], [1, 1])
    layer, head, score = movers.top(1)[0]
    assert score > 0.5
    assert layer >= 15
    assert movers.attention.values[layer, head] > 0.3
