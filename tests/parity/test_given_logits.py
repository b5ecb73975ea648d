"""Metrics and log-probabilities of rows of logits that a hook puts in, against float64: nothing of the model is in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from probewire.clients import Client, NextLogprob, capture, patch
from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import Coordinate, Kl, Logit, LogProb, Metric, OfLogits, WeightedSum
from probewire.protos.model import Input
from tests.parity.opened import OTHER, TOKENS, Opened, both

N = len(TOKENS)
FLOAT32 = 1e-6
"""Error of a log-probability that travels in float32, where it is below 16."""


def _rows(client: Client, *, spread: float = 4.0) -> np.ndarray[Any, Any]:
    """[pos, vocab]."""
    return (np.random.default_rng(0).normal(size=(N, client.describe().vocab_size)) * spread).astype(np.float32)


def _log_softmax(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = rows.astype(np.float64) - rows.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _kl(p_row: np.ndarray[Any, Any], q_row: np.ndarray[Any, Any]) -> float:
    log_p, log_q = _log_softmax(p_row), _log_softmax(q_row)
    said = np.exp(log_p) > 0
    return float((np.exp(log_p[said]) * (log_p[said] - log_q[said])).sum())


def _measured(client: Client, rows: Any, base: Any, metrics: Sequence[OfLogits]) -> np.ndarray[Any, Any]:
    """Metrics where the logits are `rows`, and those of the input "base" `base`: of a sweep and of gradients, [way, metric]."""
    inputs: dict[str, Any] = {"own": TOKENS, "base": Input(token_ids=tuple(OTHER), source_only=True)}
    hooks = [patch("logits", value=base, inputs="base")]
    own = [patch("logits", value=rows, inputs="own")]
    swept = client.sweep(inputs, list(metrics), [own], hooks=hooks, progress=False).measured["own"][0]
    each = [
        client.gradients(inputs, metric, hooks=[*hooks, *own], at="embed").inputs["own"].metric for metric in metrics
    ]
    return np.array([swept, each])


@both
@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 1.0])
def test_a_small_divergence_keeps_its_digits(opened: Opened, backend: str, size: float) -> None:
    client = opened("llama", backend, "float32")
    base = _rows(client) + np.float32(15.0)
    rows = base + np.float32(size) * np.random.default_rng(1).normal(size=base.shape).astype(np.float32)
    metrics = [Kl("base", p) for p in (0, 5, -1)]
    expected = [_kl(base[p], rows[p]) for p in (0, 5, -1)]
    for found in _measured(client, rows, base, metrics):
        assert (found >= 0).all(), "a divergence is never negative"
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-14)  # the oracle itself cancels


@both
def test_a_divergence_from_itself_is_nothing(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    base = _rows(client) + np.float32(15.0)
    for found in _measured(client, base, base, [Kl("base", p) for p in range(N)]):
        assert (found >= 0).all()
        assert (found <= 1e-30).all()


@both
def test_what_neither_row_can_say_adds_nothing(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    base = _rows(client)
    rows = base + np.float32(0.5) * _rows(client)[::-1]
    base[:, 3:60] = rows[:, 3:60] = base[:, 70] = -np.inf
    metrics: list[OfLogits] = [Kl("base"), LogProb(2), LogProb(tokens=(2, 3, 4)), LogProb(tokens=(3, 4))]
    kept = [i for i in range(base.shape[1]) if not 3 <= i < 60]
    share = _log_softmax(rows)[-1][2]
    expected = [_kl(base[-1, kept], rows[-1, kept]), share, share, -np.inf]
    for found in _measured(client, rows, base, metrics):
        assert found == pytest.approx(expected, rel=1e-6)
    [[swept], [alone]] = _measured(client, base, rows, [Kl("base")])
    assert swept == alone == np.inf, "the baseline says token 70, the other never does"


@both
@pytest.mark.parametrize("large", [1e4, 1e8, -1e8])
def test_two_equal_logits_share_the_probability(opened: Opened, backend: str, large: float) -> None:
    client = opened("llama", backend, "float32")
    rows = np.full_like(_rows(client), -3e38)
    rows[:, [OTHER[0], TOKENS[1]]] = large
    expected = [-np.log(2), 0.0]
    for found in _measured(client, rows, rows, [LogProb(TOKENS[1]), LogProb(tokens=(OTHER[0], TOKENS[1]))]):
        assert found == pytest.approx(expected, abs=FLOAT32)
    read = client.run(TOKENS, hooks=[patch("logits", value=rows)], capture=capture("logits", reduce="next_logprob"))
    assert read["logits"][0] == pytest.approx(-np.log(2), abs=FLOAT32)


@both
def test_log_probabilities_are_those_of_float64(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    rows = _rows(client, spread=2.0) + np.float32(300.0)
    expected, following = _log_softmax(rows), TOKENS[1:]
    for dtype, error in ((None, FLOAT32), ("float64", 1e-12)):
        read = capture("logits", reduce="next_logprob", dtype=dtype)
        found = client.run(TOKENS, hooks=[patch("logits", value=rows)], capture=read)["logits"]
        assert np.abs(found - expected[range(N - 1), following]).max() <= error
    sets = [(5,), (5, 9, 200), tuple(range(2, 150))]
    wanted = [np.log(np.exp(expected[4][list(tokens)]).sum()) for tokens in sets]
    for measured in _measured(client, rows, rows, [LogProb(tokens=tokens, position=4) for tokens in sets]):
        assert measured == pytest.approx(wanted, rel=1e-12)


@both
def test_sums_and_means(opened: Opened, backend: str) -> None:
    """Each metric of a sum is read at its own position; a set of logits is their mean."""
    client = opened("llama", backend, "float32")
    base, rows = _rows(client), _rows(client, spread=2.0)
    parts: list[OfLogits] = [
        Logit(tokens=(5, 9, 77), position=3),
        Logit(tokens=(5, 9), position=-2, centred=True),
        LogProb(tokens=(7, 8), position=6),
        Kl("base", 2, 5),
    ]
    wide = rows.astype(np.float64)
    wanted = [
        wide[3, [5, 9, 77]].mean(),
        wide[-2, [5, 9]].mean() - wide[-2].mean(),
        np.log(np.exp(_log_softmax(rows)[6, [7, 8]]).sum()),
        _kl(base[5], rows[2]),
    ]
    weights = (1.0, -2.5, 0.25, 3.0)
    metrics = [*parts, WeightedSum(tuple(parts)), WeightedSum(tuple(parts), weights)]
    for found in _measured(client, rows, base, metrics):
        assert found == pytest.approx([*wanted, sum(wanted), np.dot(weights, wanted)], rel=1e-10)


@both
def test_a_weight_of_zero_leaves_out_what_is_infinite(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    barred = patch("logits", value=float("-inf"), units=[7])
    never, finite = LogProb(7, position=2), LogProb(9, position=2)
    targets = [WeightedSum((never, finite), (0.0, 2.0)), finite]
    left, alone = np.ravel(client.sweep(TOKENS, targets, [[barred]], progress=False).array().values)
    assert np.isfinite(left)
    assert left == pytest.approx(2 * alone, rel=1e-12)


@both
def test_the_gradient_of_a_sum_is_the_sum_of_gradients(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    parts = (LogProb(tokens=(40, 7), position=11), Logit(3, -2), Logit(tokens=(5, 6), position=4))
    weights = (1.0, -0.5, 2.0)
    inputs = dict.fromkeys("abcd", TOKENS)
    targets: dict[str, Metric] = {"d": WeightedSum(parts, weights), **dict(zip("abc", parts, strict=True))}
    found = client.gradients(inputs, targets, at=["embed", "mlp_act.1", "logits"], rules=["ln", "half"]).inputs
    alone = client.gradients(TOKENS, targets["d"], at=["embed", "mlp_act.1"], capture="logits", rules=["ln", "half"])
    for site in ("embed", "mlp_act.1", "logits"):
        expected = sum(weight * found[name].gradients[site] for name, weight in zip("abc", weights, strict=True))
        assert np.abs(found["d"].gradients[site] - expected).max() <= 1e-12
    assert np.abs(alone.gradients["embed"] - found["d"].gradients["embed"]).max() <= 1e-12
    assert alone.captures["logits"].shape[0] == N, "rows of logits are taken once, however many the metric reads"


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        (LogProb(tokens=(3, 100_000)), "token id 100000 is outside the vocabulary"),
        (WeightedSum((Logit(3), Logit(tokens=(100_000,)))), "token id 100000 is outside the vocabulary"),
        (WeightedSum((Logit(3), Logit(4, 99))), "position 99 is outside the prompt's 14 tokens"),
        (WeightedSum((Logit(3), Kl("nobody"))), "there is no input 'nobody'"),
    ],
)
def test_what_a_model_cannot_measure_is_refused(opened: Opened, metric: Metric, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        opened("llama", "torch", "float32").gradients(TOKENS, metric, at="embed")


def test_what_no_sum_holds() -> None:
    with pytest.raises(InvalidArgument, match="got Coordinate; ask for other metrics on their own"):
        WeightedSum(cast("Any", (Logit(3), Coordinate("embed", 0, 1))))
    for made, why in (
        (lambda: WeightedSum(()), "takes 1 to 256 metrics of logits .* got 0 of them"),
        (lambda: WeightedSum((Logit(3),), (1.0, 2.0)), "1 metrics and 2 weights"),
        (lambda: WeightedSum((Logit(3),), (float("inf"),)), "must be a finite number"),
        (LogProb, "needs exactly one of token .* and tokens"),
        (lambda: Logit(3, tokens=(4,)), "needs exactly one of token .* and tokens"),
        (lambda: Logit(tokens=()), "logit.tokens is empty"),
        (lambda: LogProb(tokens=(3, 3)), "names the same index twice"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            made()


@both
def test_the_likeliest_beside_the_token_that_follows(opened: Opened, backend: str) -> None:
    """Log-probabilities of float64's own order; the token's own is the same float where it is the likeliest."""
    client = opened("llama", backend, "float32")
    rows = _rows(client, spread=2.0)
    rows[::2][range(len(rows[:-1:2])), TOKENS[1::2]] = 30.0
    expected = _log_softmax(rows)[:-1]
    read = client.run(
        TOKENS, hooks=[patch("logits", value=rows)], capture=capture("logits", reduce=NextLogprob(top=3))
    ).captures
    values, index = read.top_k("logits")
    order = np.argsort(-expected, axis=-1)[:, :3]
    assert index.tolist() == order.tolist()
    assert np.abs(values - np.take_along_axis(expected, order, -1)).max() <= FLOAT32
    own = read["logits"]
    assert (own[::2] == values[::2, 0]).all(), "to the bit"
    assert (own[1::2] < values[1::2, 0]).all()
    plain = client.run(TOKENS, hooks=[patch("logits", value=rows)], capture=capture("logits", reduce="next_logprob"))
    assert (plain["logits"] == own).all()


@both
def test_the_likeliest_of_a_generation(opened: Opened, backend: str) -> None:
    """Rows of the prompt and of every sampled token; a request that asks for fewer in its tokens gets so many there."""
    client = opened("llama", backend, "float32")
    read = capture("logits", reduce=NextLogprob(top=4), phase="prompt", id="prompt")
    later = capture("logits", reduce=NextLogprob(top=3), phase="generated", id="new")
    made = client.generate(TOKENS, capture=[read, later], max_new_tokens=3, logprobs=2)
    new = made.inputs["input"].new
    [values, index], [more, more_index] = (made.captures.hook(name).top_k("logits") for name in ("prompt", "new"))
    whole = client.run([*TOKENS, *(token.id for token in new)], capture=capture("logits", reduce=NextLogprob(top=4)))
    forced, forced_index = whole.captures.top_k("logits")
    assert (values.shape, more.shape) == ((N, 4), (2, 3))
    assert index.tolist() == forced_index[:N].tolist()
    assert more_index.tolist() == forced_index[N:, :3].tolist()
    assert np.abs(np.concatenate([values[:, :3], more]) - forced[:, :3]).max() <= 1e-5
    assert [[top.id for top in token.top][:2] for token in new] == [index[-1, :2].tolist(), *more_index[:, :2].tolist()]
    assert max(len(token.top) for token in new) <= 3, "two, and the sampled one where it is not among them"
    silent = client.generate(TOKENS, capture=read, max_new_tokens=3).inputs["input"].new
    assert [(token.logprob, token.top) for token in silent] == [(None, ())] * 3
    with pytest.raises(InvalidArgument, match="the top 4000"):
        client.run(TOKENS, capture=capture("logits", reduce=NextLogprob(top=4000)))
