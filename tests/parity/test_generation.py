"""Generation equals teacher forcing, and neighbours change nothing, on each engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends.hooks.base import Backend
from probewire.protos.edits import Add, Scale
from probewire.protos.model import Sampling
from probewire.protos.spec import AllOf, AnyOf, Capture, Condition, Hook, NextLogprob, Plan, Where
from tests.parity.harness import TOLERANCE, assert_same, every_site, generate, load, run, sequence, stack_caches
from tests.tiny_models import tiny_checkpoint

PROMPT = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3, 250, 88, 41, 9, 163, 52, 20, 111]
OTHERS = [
    [30, 31, 32],
    list(range(40, 75)),
    [9] * 12,
    list(range(100, 121)),
    [1, 2],
    list(range(10, 60)),
    [77, 3, 250, 11],
]


@pytest.fixture(scope="module", params=["torch", "mlx", "torch alone", "torch stacked"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    name, _, own = request.param.partition(" ")
    made = load(name, folder)
    if own == "stacked":
        stack_caches(made)
    assert own != "alone" or made.generate_alone("a test of it")
    yield made
    made.close()


def _direction(seed: int, width: int = 64) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=width).astype(np.float32)


def _every_generated_site(backend: Backend) -> Plan:
    return every_site(backend, "generate")


def _steered(backend: Backend) -> Plan:
    steer = Hook("resid_post.1", edit=Add(_direction(1), alpha=0.7))
    only_new = Hook("mlp_act.0", edit=Scale(0.5, units=(3, 4)), where=Where(phase="generated"))
    condition = Condition(0.0, unit=5)
    gated = Hook("resid_mid.2", edit=Add(_direction(2)), where=Where(when=condition))
    return Plan((steer, only_new, gated, *every_site(backend, "generate").hooks))


def _latched(backend: Backend) -> Plan:
    condition = Condition(-1e3, site="resid_pre.1", unit=5, latch="mean")
    return Plan(
        (
            Hook("resid_post.1", edit=Add(_direction(1)), where=Where(when=condition)),
            *every_site(backend, "generate").hooks,
        )
    )


def _together(backend: Backend) -> Plan:
    """Each with two latches or one, beside a condition that each row decides for itself."""
    cosine = Condition(0.02, site="resid_pre.0", direction=_direction(6), latch="mean", normalise=True, op="lt")
    last, own = Condition(0.0, site="embed", unit=2, latch="last"), Condition(0.0, unit=3)
    whens = [AllOf((cosine, own)), AnyOf((last, own)), AnyOf((last, cosine))]
    hooks = [
        Hook(f"resid_post.{layer}", edit=Add(_direction(layer), alpha=0.7), capture=Capture(), where=Where(when=when))
        for layer, when in enumerate(whens)
    ]
    return Plan((*hooks, *every_site(backend, "generate").hooks))


@pytest.mark.parametrize("make_plan", [_every_generated_site, _steered, _latched, _together])
def test_equals_teacher_forcing(backend: Backend, make_plan: Any) -> None:
    plan = make_plan(backend)
    [made] = generate(backend, [sequence(backend, PROMPT, plan, mode="generate", max_new=10)])
    forced = run(backend, made.tokens[:-1], plan, prompt_length=len(PROMPT))
    assert len(made.tokens) == len(PROMPT) + 10
    assert_same(made.captured, forced, TOLERANCE["float32"])
    [rows] = [found for (_, site, _), found in made.captured.items() if site == "embed"]
    assert rows.positions == tuple(range(len(PROMPT) + 9)), "a row for every token but the last sampled one"


def test_each_prompt_of_a_batch_decides_its_own_conditions(backend: Backend) -> None:
    plan = _together(backend)
    prompts = [PROMPT, *OTHERS]
    batch = [sequence(backend, p, plan, mode="generate", max_new=6, name=str(i)) for i, p in enumerate(prompts)]
    reached: set[tuple[int, ...]] = set()
    for prompt, made in zip(prompts, generate(backend, batch), strict=True):
        assert_same(
            made.captured, run(backend, made.tokens[:-1], plan, prompt_length=len(prompt)), TOLERANCE["float32"]
        )
        reached |= {
            tuple(p - len(prompt) for p in found.positions)
            for (hook, _, _), found in made.captured.items()
            if hook < len(plan.hooks) - len(every_site(backend, "generate").hooks)
        }
    assert len(reached) >= 4, "the prompts decide alike: nothing was told apart"


def test_steering_steers(backend: Backend) -> None:
    plain, steered = (
        generate(backend, [sequence(backend, PROMPT, plan, mode="generate", max_new=10)])[0].tokens
        for plan in (Plan(), Plan((Hook("resid_post.1", edit=Add(_direction(3), alpha=8.0)),)))
    )
    assert plain != steered


def test_neighbours_change_nothing(backend: Backend) -> None:
    """Alone, and among seven with other plans, lengths, a shared prefix and one cancelled: same tokens and captures."""
    plan = _steered(backend)
    [alone] = generate(backend, [sequence(backend, PROMPT, plan, mode="generate", max_new=12)])
    shared = [*PROMPT[:16], 1, 2, 3]
    plans = [
        Plan((Hook("resid_post.0", edit=Add(_direction(9 + i), alpha=3.0)), Hook("z.*", capture=Capture())))
        if i % 2
        else Plan()
        for i in range(7)
    ]
    others = [
        sequence(backend, shared if i == 3 else tokens, plans[i], mode="generate", max_new=12, name=f"n{i}")
        for i, tokens in enumerate(OTHERS)
    ]
    mine = sequence(backend, PROMPT, plan, mode="generate", max_new=12, name="mine")
    batch = [*others[:3], mine, *others[3:]]
    made = generate(backend, batch, cancel_after={"n1": 3})[3]
    assert made.tokens == alone.tokens
    assert_same(made.captured, alone.captured, TOLERANCE["float32"])


@pytest.mark.parametrize("leaves_after", [1, 4, 7])
def test_a_neighbour_that_leaves_takes_no_rows_along(backend: Backend, leaves_after: int) -> None:
    """Neighbours that read some of the same sites leave with a forward pending: each of mine has every row still."""
    mine = Plan((Hook("resid_post.*", capture=Capture()), Hook("mlp_out.0", capture=Capture())))
    theirs = [Plan((Hook(site, capture=Capture()),)) for site in ("resid_post.1", "resid_post.0", "mlp_out.*")]
    short = PROMPT[:6]  # read in one chunk, so that all decode beside each other
    batch = [
        sequence(backend, short[i:], plan, mode="generate", max_new=12, name=f"leaves{i}")
        for i, plan in enumerate(theirs)
    ]
    batch.insert(1, sequence(backend, short, mine, mode="generate", max_new=12, name="mine"))
    made = generate(backend, batch, cancel_after={f"leaves{i}": leaves_after + i for i in range(len(theirs))})[1]
    [alone] = generate(backend, [sequence(backend, short, mine, mode="generate", max_new=12)])
    assert made.tokens == alone.tokens
    assert {key: one.positions for key, one in made.captured.items()} == {
        key: one.positions for key, one in alone.captured.items()
    }
    assert_same(made.captured, alone.captured, TOLERANCE["float32"])


def test_prefixes_are_not_shared_between_plans(backend: Backend) -> None:
    """The same prompt, plain right after steered: were blocks shared, the plain one would read steered keys."""
    edit = Hook("resid_pre.0", edit=Add(_direction(4), alpha=5.0))
    capture = Hook("resid_post.2", capture=Capture())
    long = PROMPT * 5
    expected = run(backend, long, Plan((capture,)))
    for first in (Plan((edit,)), Plan()):
        generate(backend, [sequence(backend, long, first, mode="generate", max_new=2, name="first")])
        [made] = generate(
            backend, [sequence(backend, long, Plan((capture,)), mode="generate", max_new=2, name="second")]
        )
        got = made.captured[0, "resid_post.2", ""].values[: len(long)]
        assert np.abs(got - expected[0, "resid_post.2", ""].values).max() <= 1e-4 * np.abs(got).max()


def test_false_condition_is_bit_identical_to_no_edit(backend: Backend) -> None:
    never = Where(when=Condition(1e9, unit=0))
    captures = every_site(backend, "generate").hooks
    plain = Plan((Hook("resid_post.0", capture=Capture(before=True)), *captures))
    gated = Plan((Hook("resid_post.0", edit=Add(_direction(5), alpha=9.0), where=never, capture=None), *captures))
    [a] = generate(backend, [sequence(backend, PROMPT, plain, mode="generate")])
    [b] = generate(backend, [sequence(backend, PROMPT, gated, mode="generate")])
    assert a.tokens == b.tokens
    for (hook, site, part), found in b.captured.items():
        assert np.array_equal(found.values, a.captured[hook, site, part].values), site


def test_sampling_depends_on_the_seed_alone(backend: Backend) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=1.3, top_p=0.9, top_k=50, seed=11, logprobs=3)
    [alone] = generate(backend, [sequence(backend, PROMPT, Plan(), mode="generate", sampling=sampling)])
    crowd = [
        sequence(
            backend,
            tokens,
            Plan(),
            mode="generate",
            max_new=12,
            name=f"n{i}",
            sampling=Sampling(max_new_tokens=12, temperature=0.8, seed=i),
        )
        for i, tokens in enumerate(OTHERS[:4])
    ]
    mine = sequence(backend, PROMPT, Plan(), mode="generate", name="mine", sampling=sampling)
    made = generate(backend, [*crowd, mine])[-1]
    assert made.tokens == alone.tokens
    other = Sampling(max_new_tokens=12, temperature=1.3, seed=12)
    [different] = generate(backend, [sequence(backend, PROMPT, Plan(), mode="generate", sampling=other)])
    assert different.tokens != alone.tokens
    for logprob, top in zip(made.logprobs, made.top, strict=True):
        assert logprob is not None
        assert logprob <= top[0][1] <= 0.0


def test_next_logprob_matches_the_sampler(backend: Backend) -> None:
    plan = Plan((Hook("logits", capture=Capture(reduce=NextLogprob()), where=Where(spans=None, phase="all")),))
    sampling = Sampling(max_new_tokens=6, temperature=1.0, seed=3, logprobs=0)
    [made] = generate(backend, [sequence(backend, PROMPT, plan, mode="generate", sampling=sampling)])
    rows = made.captured[0, "logits", ""]
    assert rows.positions == tuple(range(len(PROMPT) - 1, len(PROMPT) + 5))
    assert np.allclose(rows.values, np.array(made.logprobs, dtype=np.float32), atol=1e-5)
    forced = run(
        backend, made.tokens, Plan((Hook("logits", capture=Capture(reduce=NextLogprob())),)), prompt_length=len(PROMPT)
    )
    at = forced[0, "logits", ""]
    assert np.allclose(at.values[len(PROMPT) - 1 :], rows.values, atol=1e-4)


def test_logits_of_prompt_rows_come_when_asked_for(backend: Backend) -> None:
    asked = Plan((Hook("logits", capture=Capture(), where=Where(phase="prompt")), Hook("logits", capture=Capture())))
    [made] = generate(backend, [sequence(backend, PROMPT, asked, mode="generate", max_new=4)])
    forced = run(backend, made.tokens[:-1], asked, prompt_length=len(PROMPT))
    assert made.captured[0, "logits", ""].positions == tuple(range(len(PROMPT)))
    assert made.captured[1, "logits", ""].positions == tuple(range(len(PROMPT) - 1, len(PROMPT) + 3))
    assert_same(made.captured, forced, TOLERANCE["float32"])


def test_a_failing_hook_fails_its_request_alone(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The edit of one sequence raises in the middle of a step; its neighbour's tokens are those it has alone."""
    from probewire.backends.hooks.edits import Edits

    [alone] = generate(backend, [sequence(backend, OTHERS[1], Plan(), mode="generate", max_new=6)])
    real = Edits.apply

    def faulty(self: Edits, bound: Any, *args: Any) -> Any:
        if bound.hook.id == "boom":
            raise RuntimeError("planted fault")
        return real(self, bound, *args)

    monkeypatch.setattr(Edits, "apply", faulty)
    bad = sequence(
        backend, PROMPT, Plan((Hook("resid_post.1", edit=Scale(2.0), id="boom"),)), mode="generate", name="bad"
    )
    good = sequence(backend, OTHERS[1], Plan(), mode="generate", max_new=6, name="good")
    engine = backend.engine
    assert engine is not None
    assert engine.admit(bad)
    assert engine.admit(good)
    errors: list[str] = []
    while good.n_generated < 6:
        errors += [r.error.message for r in engine.step() if r.error is not None and r.sequence is bad]
    engine.remove(good)
    assert len(errors) == 1
    assert "planted fault" in errors[0]
    assert good.tokens == alone.tokens
    assert not engine.active


def test_pause_keeps_every_row_and_token(backend: Backend) -> None:
    plan = every_site(backend, "generate")
    [plain] = generate(backend, [sequence(backend, PROMPT, plan, mode="generate", max_new=8)])
    engine = backend.engine
    assert engine is not None
    held = sequence(backend, PROMPT, plan, mode="generate", max_new=8, name="held")
    other = sequence(backend, OTHERS[1], Plan(), mode="generate", max_new=30, name="other")
    assert engine.admit(held)
    assert engine.admit(other)
    rows: list[Any] = []
    steps = 0
    while held.n_generated < 8:
        steps += 1
        if steps == 9:
            before = held.n_generated
            engine.pause(held)
            for _ in range(4):
                rows += [row for r in engine.step() if r.sequence is held for row in r.rows]
            assert held.n_generated <= before + 1, "a paused sequence stands still"
            engine.resume(held)
        rows += [row for r in engine.step() if r.sequence is held for row in r.rows]
    for left in (held, other):
        engine.remove(left)
    assert held.tokens == plain.tokens
    from tests.parity.harness import collect

    assert_same(collect(rows), plain.captured, TOLERANCE["float32"])
