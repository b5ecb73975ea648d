"""−infinity before a softmax takes a key, a token or an expert out; what is left still sums to 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends import reference
from probewire.clients import Client, Constant, Input, Replace, hook, patch
from probewire.protos.edits import Add, Clamp, Inline, Scale, Zeros
from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import LogProb
from probewire.protos.spec import Capture, Condition, Hook, Plan, Span, Where
from probewire.protos.tensors import Tensor
from tests.parity.harness import Captured, Key, assert_same, generate, load, run, sequence
from tests.parity.opened import OTHER, TOKENS, Opened, both, gap
from tests.tiny_models import FAMILIES, tiny_checkpoint

OUT = -np.inf
N = len(TOKENS)
LATER = list(range(3, N))
"""Rows that see keys 0 and 3 or more, whatever the window of a tiny model."""
TOLERANCE = 1e-4


def _without(scores: Any, keys: list[int], rows: list[int], heads: list[int] | None = None) -> Any:
    """[head, query, key]: the pattern of the scores, keys left out of some rows."""
    scores = scores.astype(np.float64)
    at = np.ix_(range(scores.shape[0]) if heads is None else heads, rows, keys)
    scores[at] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@both
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mistral"])
def test_a_key_is_gone_and_rows_sum_to_one(opened: Opened, family: str, backend: str) -> None:
    """Plain attention, a softcap, biases, windows; with heads named and without, as one number, as rows, as values each."""
    client = opened(family, backend, "float32")
    plain = client.run(TOKENS, capture=["attn_scores.1", "z.1"])
    n_heads = plain["attn_scores.1"].shape[0]
    ways = {
        "a number": patch("attn_scores.1", value=OUT, units=[2], positions=LATER),
        "a number a key": hook("attn_scores.1", Replace(Constant(Tensor.of([OUT])), units=(2,)), positions=LATER),
        "rows": patch("attn_scores.1", value=np.full((n_heads, len(LATER), 1), OUT), units=[2], positions=LATER),
    }
    expected = _without(plain["attn_scores.1"], [2], LATER)
    for name, way in ways.items():
        found = client.run(TOKENS, hooks=[way], capture=["attn_scores.1", "attn_probs.1", "logits"])
        probs = found["attn_probs.1"]
        assert np.isneginf(found["attn_scores.1"][:, LATER, 2]).all(), name
        assert not probs[:, LATER, 2].any(), name
        assert np.abs(probs.sum(axis=-1) - 1).max() <= 1e-6, name
        assert gap(probs, expected) <= TOLERANCE, name
        assert np.isfinite(found["logits"]).all()
    two = patch("attn_scores.1", value=OUT, units=[1, 2], heads=[0, 3], positions=LATER)
    probs = client.run(TOKENS, hooks=[two], capture="attn_probs.1")["attn_probs.1"]
    if family != "mistral":  # whose window some of these rows lie beyond
        assert gap(probs, _without(plain["attn_scores.1"], [1, 2], LATER, [0, 3])) <= TOLERANCE


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_reference_says_the_same(family: str, backend: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(family, tmp_path)
    made, meaning = load(backend, folder), reference.load(folder)
    where = Where(positions=tuple(LATER))
    out = Hook("attn_scores.1", Replace(Constant(Tensor.of(OUT)), units=(0, 2), heads=(1, 2)), Capture(), where)
    after = [
        Hook("attn_scores.1", Scale(0.0), Capture(), Where(positions=(5, 9)), id="scaled"),
        Hook("attn_scores.1", Add(Tensor.of([3.0, 1.0]), units=(2, 3)), Capture(), id="added"),
        Hook("attn_scores.1", Clamp(min=-0.5), Capture(), id="clamped"),
    ]
    back = Hook("attn_scores.1", Replace(Zeros(), units=(2,)), Capture(), id="back")
    ends = [Hook("attn_probs.1", capture=Capture()), Hook("logits", capture=Capture())]
    for hooks in ([out, *ends], [out, *after, *ends], [out, back, *ends]):
        found = run(made, TOKENS, Plan(tuple(hooks)))
        captures = reference.run(meaning, TOKENS, Plan(tuple(hooks))).captures
        expected: dict[Key, Captured] = {key: Captured(tuple(c.positions), c.values) for key, c in captures.items()}
        assert_same(found, expected, TOLERANCE)
        assert np.isfinite(found[len(hooks) - 1, "logits", ""].values).all()
    made.close()


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral"])
def test_in_a_generation(family: str, backend: str, tmp_path: Path) -> None:
    """Equal to one forward over the same tokens; a key may be named before it exists."""
    made = load(backend, tiny_checkpoint(family, tmp_path))
    if not any(site.name == "attn_scores" and site.generate for site in made.info.sites):
        pytest.skip("this family offers no scores in generations")
    value = Tensor.of(np.array([OUT, OUT, 0.5], np.float32))
    gone = Hook("attn_scores.*", Replace(Constant(value), units=(2, 17, 16)), where=Where(spans=(Span(3),)))
    reads = [Hook("attn_probs.1", capture=Capture()), Hook("logits", capture=Capture())]
    [made_one] = generate(made, [sequence(made, TOKENS, Plan((gone, *reads)), mode="generate", max_new=8)])
    forced = run(made, made_one.tokens[:-1], Plan((gone, *reads)), prompt_length=N)
    assert_same(made_one.captured, forced, TOLERANCE)
    probs = made_one.captured[1, "attn_probs.1", ""].values
    assert not probs[:, 3:, 2].any()
    assert not probs[:, 18:, 17].any()
    made.close()


@both
def test_gradients_past_it_are_finite_and_none_where_it_is_out(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    gone = patch("attn_scores.1", value=OUT, units=[2], positions=LATER)
    found = client.gradients(
        TOKENS, LogProb(40, 11), at=["embed", "attn_scores.1", "attn_probs.1", "k.1"], hooks=[gone]
    ).gradients
    assert all(np.isfinite(found[site]).all() for site in found.sites)
    assert not found["attn_scores.1"][:, LATER, 2].any()
    assert found["attn_scores.1"][:, LATER, 1].any()


@both
def test_a_sweep_over_keys(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    plans = [[patch("attn_scores.1", value=OUT, units=[key], positions=LATER)] for key in range(3)]
    swept = client.sweep(TOKENS, LogProb(40), plans, progress=False).array().values
    alone = [client.gradients(TOKENS, LogProb(40), hooks=plan, at="embed").metric for plan in plans]
    assert swept == pytest.approx(alone, abs=1e-5)
    assert len(np.unique(np.round(swept, 6))) == 3


# ---- nothing left ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("hooks", "row"),
    [
        ([patch("attn_scores.1", value=OUT, units=[0])], 0),
        ([patch("attn_scores.1", value=OUT, units=range(4), positions=[9, 3])], 3),
        ([patch("attn_scores.1", value=OUT, units=range(4), heads=[2])], 0),
        ([patch("attn_scores.1", value=np.full((4, N, N), OUT), phase="prompt")], 0),
        (
            [
                patch("attn_scores.1", value=OUT, units=[0, 2], positions=[2]),
                patch("attn_scores.1", value=OUT, units=[1]),
            ],
            2,
        ),
        ([patch("attn_scores.1", value=OUT, units=[0], when=Condition(-1e9, site="resid_pre.1", unit=3))], 0),
    ],
)
def test_a_row_with_no_key_left_is_refused(opened: Opened, backend: str, hooks: list[Hook], row: int) -> None:
    """By one hook alone before anything runs; by several together, or under a condition, as it shows."""
    client = opened("llama", backend, "float32")
    why = f"the row at position {row} has no key left"
    with pytest.raises(InvalidArgument, match=why):
        client.run(TOKENS, hooks=hooks, capture="logits")
    with pytest.raises(InvalidArgument, match=why):
        client.gradients(TOKENS, LogProb(3), hooks=hooks, at="embed")
    with pytest.raises(InvalidArgument, match=why):
        client.sweep(TOKENS, LogProb(3), [hooks], progress=False)
    with pytest.raises(InvalidArgument, match=why):
        client.generate([TOKENS], hooks=hooks, max_new_tokens=4)
    assert np.isfinite(client.run(TOKENS, capture="logits")["logits"]).all()


@both
def test_a_windows_whole_row_shows_in_the_forward(opened: Opened, backend: str) -> None:
    client = opened("mistral", backend, "float32")
    seen = np.isfinite(client.run(TOKENS, capture="attn_scores.1")["attn_scores.1"][0, N - 1])
    assert not seen.all(), "its window is shorter than the prompt"
    last = patch("attn_scores.1", value=OUT, units=np.flatnonzero(seen).tolist(), positions=[N - 1])
    with pytest.raises(InvalidArgument, match=rf"attn_scores.1: the row at position {N - 1} has no key left"):
        client.run(TOKENS, hooks=[last], capture="logits")


@both
def test_a_neighbour_does_not_notice(opened: Opened, backend: str) -> None:
    """Scores of another prompt whose rows see less: nothing is left of some, and only that request fails."""
    client = opened("llama", backend, "float32")
    together = [patch("attn_scores.1", value=OUT, units=[0, 2], positions=[2], inputs="b")]
    together += [patch("attn_scores.1", value=OUT, units=[1], positions=[2], inputs="b")]
    with pytest.raises(InvalidArgument, match="no key left"):
        client.run({"a": TOKENS, "b": OTHER}, hooks=together, capture="logits")
    moved = patch("attn_scores.1", from_input="b", source_positions=[1], positions=[9], inputs="a")
    probs = client.run(
        {"a": TOKENS, "b": Input(token_ids=tuple(OTHER), source_only=True)}, hooks=[moved], capture="attn_probs.1"
    )
    pattern = probs.inputs["a"]["attn_probs.1"][:, 9]
    assert not pattern[:, 2:].any(), "a row of scores comes with what it did not see"
    assert np.abs(pattern.sum(axis=-1) - 1).max() <= 1e-6


# ---- tokens and experts; where it means nothing ----------------------------------------------------------------------


@both
def test_tokens_and_experts(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    best = int(np.argmax(client.run(TOKENS, capture="logits")["logits"][-1]))
    made = client.generate(
        [TOKENS], hooks=[patch("logits", value=OUT, units=[best])], max_new_tokens=6, ignore_eos=True
    )
    assert best not in made.token_ids[N:]
    assert len(made.token_ids) == N + 6
    experts = opened("gpt_oss", backend, "float32")
    favoured = experts.run(TOKENS, capture="expert_weights.1")["expert_weights.1"].sum(axis=0)
    expert = int(np.argmax(favoured))
    found = experts.run(TOKENS, hooks=[patch("router_logits.1", value=OUT, units=[expert])], capture="expert_weights.1")
    weights = found["expert_weights.1"]
    assert favoured[expert] > 0
    assert not weights[:, expert].any()
    assert np.abs(weights.sum(axis=-1) - 1).max() <= 1e-5


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: patch("resid_post.1", value=OUT), "replaces by −infinity, which is possible at attn_scores, logits"),
        (lambda: patch("attn_probs.1", value=OUT, units=[2]), "replaces by −infinity"),
        (lambda: patch("attn_scores.1", value=np.inf, units=[2]), r"holds NaN or \+infinity"),
        (lambda: patch("attn_scores.1", value=np.nan, units=[2]), r"holds NaN or \+infinity"),
        (lambda: patch("logits", value=np.full((3, 4), np.inf)), r"holds NaN or \+infinity"),
        (lambda: Inline(Tensor.of(np.full((3, 4), np.nan))), r"holds NaN or \+infinity"),
    ],
)
def test_where_it_means_nothing(make: Any, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        make()


def test_shapes_that_do_not_fit(opened: Opened) -> None:
    client: Client = opened("llama", "torch", "float32")
    for bad, why in (
        (patch("attn_scores.1", value=OUT), "needs units"),
        (patch("attn_scores.1", value=np.full((4, N, 2), OUT), units=[2]), r"it must be \[4 heads, queries, 1\]"),
        (patch("attn_scores.1", value=np.zeros((N, 4, 1)), units=[2]), r"it must be \[4 heads, queries, 1\]"),
        (patch("attn_scores.1", value=np.zeros((4, N))), r"it must be \[4 heads, queries, keys\]"),
        (hook("attn_scores.1", Replace(Constant(Tensor.of([OUT, OUT])), units=(2,))), "this site's part needs"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            client.run(TOKENS, hooks=[bad], capture="logits")
