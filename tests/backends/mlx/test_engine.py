"""The MLX engine: every row once, whatever the batch, the chunks, pauses and removals did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from probewire.backends.hooks.captures import flush_reductions
from probewire.backends.hooks.sequence import Rows, Sequence
from probewire.backends.mlx.backend import MlxBackend
from probewire.backends.mlx.engine import MlxEngine
from probewire.backends.model.limits import Limits
from probewire.protos.edits import Add, Inline, Replace
from probewire.protos.model import Sampling
from probewire.protos.spec import Capture, Hook, Last, Mean, Plan, Where
from tests.parity.harness import CHUNKED, TOLERANCE, assert_same, collect, every_site, generate, load, run, sequence
from tests.tiny_models import FAMILIES, tiny_checkpoint

PROMPT = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3, 250, 88, 41, 9, 163, 52, 20, 111]
OTHERS = [[30, 31, 32], list(range(40, 75)), [9]]
LIMITS = Limits(n_slots=4, context_tokens=512, cache_tokens=2048, chunk_tokens=8)


def _load(folder: Path, limits: Limits = LIMITS) -> MlxBackend:
    backend = load("mlx", folder, limits=limits)
    assert isinstance(backend, MlxBackend)
    return backend


def _engine(backend: MlxBackend) -> MlxEngine:
    assert isinstance(backend.engine, MlxEngine)
    return backend.engine


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def backend(tmp: Path) -> Iterator[MlxBackend]:
    made = _load(tiny_checkpoint("llama", tmp))
    yield made
    assert _engine(made).cache_held == 0, "some test left keys behind"
    made.close()


def _step(engine: MlxEngine, rows: dict[str, list[Rows]]) -> None:
    for result in engine.step():
        assert result.error is None, result.error
        rows.setdefault(result.sequence.id, []).extend(result.rows)


def _generation(backend: MlxBackend, name: str = "s", tokens: list[int] = PROMPT, **kwargs: Any) -> Sequence:
    plan = kwargs.pop("plan", None) or every_site(backend, "generate")
    return sequence(backend, tokens, plan, mode="generate", name=name, **kwargs)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [(family, {}) for family in FAMILIES]
    + [
        ("phi3", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ],
)
def test_every_family_past_its_window(family: str, overrides: dict[str, Any], tmp: Path) -> None:
    """Generation in a ragged batch equals a run over the same tokens; a run equals the reference (tests/parity)."""
    backend = _load(tiny_checkpoint(family, tmp, **overrides))
    plan = every_site(backend, "generate")
    prompts = [PROMPT, *OTHERS]
    batch = [_generation(backend, f"s{i}", p, max_new=11) for i, p in enumerate(prompts)]
    for prompt, found in zip(prompts, generate(backend, batch), strict=True):
        forced = run(backend, found.tokens[:-1], plan, prompt_length=len(prompt))
        assert_same(found.captured, forced, TOLERANCE["float32"])
        logits = next(c.values for (_, site, _), c in forced.items() if site == "logits")
        assert found.tokens[len(prompt) :] == logits[len(prompt) - 1 :].argmax(-1).tolist()
    assert _engine(backend).cache_held == 0
    backend.close()


def test_a_neighbour_that_comes_and_one_that_goes(backend: MlxBackend) -> None:
    engine, rows = _engine(backend), dict[str, list[Rows]]()
    mine, goes, comes = (_generation(backend, name, max_new=12) for name in ("mine", "goes", "comes"))
    [alone] = generate(backend, [_generation(backend, max_new=12)])
    assert engine.admit(goes)
    assert engine.admit(mine)
    while mine.n_generated < 12:
        _step(engine, rows)
        if goes.n_generated == 3:
            engine.remove(goes)
        if mine.n_generated == 5 and comes not in engine.active:
            assert engine.admit(comes)
    for left in (mine, comes):
        engine.remove(left)
    assert mine.tokens == alone.tokens
    assert comes.n_generated > 0
    assert comes.tokens == alone.tokens[: len(comes.tokens)]
    assert_same(collect(rows["mine"]), alone.captured, TOLERANCE["float32"])
    for name in ("goes", "comes"):
        found = collect(rows[name])
        assert all(c.positions[-1] < len(PROMPT) + 11 for c in found.values())
        assert_same(found, alone.captured, TOLERANCE["float32"])


@pytest.mark.parametrize("pause_at", [0, 1, 2, 3, 4, 5, 7])
def test_pause_at_any_step(backend: MlxBackend, pause_at: int) -> None:
    """Before the first chunk, between chunks, between the prompt and the first token, and while decoding."""
    engine, rows = _engine(backend), dict[str, list[Rows]]()
    [alone] = generate(backend, [_generation(backend, max_new=8)])
    held, other = _generation(backend, "held", max_new=8), _generation(backend, "other", OTHERS[1], max_new=30)
    assert engine.admit(held)
    assert engine.admit(other)
    for _ in range(pause_at):
        _step(engine, rows)
    engine.pause(held)
    engine.pause(held)
    seen, tokens = sum(len(r.positions) for r in rows.get("held", [])), list(held.tokens)
    for _ in range(3):
        _step(engine, rows)
    assert held in engine.active
    assert sum(len(r.positions) for r in rows.get("held", [])) == seen, "a paused sequence stands still"
    assert held.tokens == tokens
    engine.resume(held)
    while held.n_generated < 8:
        _step(engine, rows)
    for left in (held, other):
        engine.remove(left)
    assert held.tokens == alone.tokens
    assert_same(collect(rows["held"]), alone.captured, TOLERANCE["float32"])


def test_all_paused_is_standing_still(backend: MlxBackend) -> None:
    engine, held = _engine(backend), _generation(backend)
    assert engine.admit(held)
    while not held.n_generated:
        engine.step()
    engine.pause(held)
    assert engine.step() == []
    assert engine.cache_held > 0
    engine.remove(held)
    assert engine.cache_held == 0
    assert engine.active == []
    engine.resume(held)
    engine.remove(held)
    assert engine.step() == []


def test_sampling_with_noise_survives_a_pause(backend: MlxBackend) -> None:
    engine = _engine(backend)
    sampling = Sampling(max_new_tokens=10, temperature=1.4, top_p=0.95, seed=3, logprobs=2)
    [alone] = generate(backend, [_generation(backend, sampling=sampling, max_new=10)])
    held = _generation(backend, sampling=sampling, max_new=10)
    other = _generation(backend, "other", OTHERS[0], max_new=40)
    for one in (other, held):
        assert engine.admit(one)
    while held.n_generated < 10:
        if held.n_generated == 4:
            engine.pause(held)
            engine.step()
            engine.resume(held)
        engine.step()
    engine.remove(held)
    engine.remove(other)
    assert held.tokens == alone.tokens


def test_reductions_stop_at_the_last_row(backend: MlxBackend) -> None:
    """The engine has run one row further by then."""
    plan = Plan(
        (Hook("resid_post.1", capture=Capture(reduce=Mean())), Hook("resid_post.1", capture=Capture(reduce=Last())))
    )
    [made] = generate(backend, [_generation(backend, plan=plan, max_new=7)])
    forced = run(backend, made.tokens[:-1], plan, prompt_length=len(PROMPT))
    assert_same(made.captured, forced, TOLERANCE["float32"])
    engine, held, rows = _engine(backend), _generation(backend, plan=plan, max_new=9), dict[str, list[Rows]]()
    other = _generation(backend, "other", OTHERS[0], plan=plan, max_new=9)
    assert engine.admit(held)
    assert engine.admit(other)
    while held.n_generated < 7:
        _step(engine, rows)
    engine.pause(other)  # what `held` has ahead must not be taken in by it
    engine.remove(held)
    engine.resume(other)
    engine.remove(other)
    assert_same(collect(rows["s"] + flush_reductions(held.plan)), forced, TOLERANCE["float32"])


def test_hooks_never_see_the_row_past_the_end(backend: MlxBackend) -> None:
    """A source has rows for every row there is; the engine's look-ahead would ask for one more."""
    n_rows = len(PROMPT) + 5
    source = np.random.default_rng(0).normal(size=(n_rows, 64)).astype(np.float32)
    plan = Plan((Hook("resid_post.1", edit=Replace(Inline(source)), capture=Capture()),))
    engine, found, rows = _engine(backend), _generation(backend, plan=plan, max_new=6), dict[str, list[Rows]]()
    assert engine.admit(found)
    while found.n_generated < 6:
        _step(engine, rows)
    engine.remove(found)
    [captured] = collect(rows["s"]).values()
    assert np.allclose(captured.values, source)


def test_a_failure_in_the_look_ahead_is_nobodys(backend: MlxBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that fails on a row which only the look-ahead ran fails nothing when the sequence ends before it."""
    from probewire.backends.hooks.edits import Edits

    real = Edits.apply

    def faulty(self: Edits, bound: Any, index: int, site: Any, rows: Any, positions: Any, *args: Any) -> Any:
        if len(PROMPT) + 3 in positions:
            raise RuntimeError("planted fault")
        return real(self, bound, index, site, rows, positions, *args)

    monkeypatch.setattr(Edits, "apply", faulty)
    plan = Plan((Hook("resid_post.1", edit=Add(np.ones(64, dtype=np.float32))),))
    engine = _engine(backend)
    ends, fails = (_generation(backend, name, plan=plan, max_new=20) for name in ("ends", "fails"))
    for one in (ends, fails):
        assert engine.admit(one)
    errors: dict[str, str] = {}
    while fails in engine.active:
        for result in engine.step():
            if result.error is not None:
                errors[result.sequence.id] = result.error.message
        if ends.n_generated == 4:
            engine.remove(ends)
    assert list(errors) == ["fails"]
    assert "planted fault" in errors["fails"]
    assert fails.n_generated == 4


def test_token_conditions_know_the_sampled_token(backend: MlxBackend) -> None:
    [plain] = generate(backend, [_generation(backend, plan=Plan(), max_new=12)])
    chosen = plain.tokens[len(PROMPT) + 4]
    plan = Plan((Hook("embed", capture=Capture(), where=Where(token_ids=(chosen,))),))
    for temperature in (0.0, 1e-6):
        sampling = Sampling(max_new_tokens=12, temperature=temperature)
        [made] = generate(backend, [_generation(backend, plan=plan, sampling=sampling, max_new=12)])
        expected = tuple(i for i, token in enumerate(made.tokens[:-1]) if token == chosen)
        assert made.tokens == plain.tokens
        assert made.captured[0, "embed", ""].positions == expected


def test_admission_is_by_the_rectangle(backend: MlxBackend) -> None:
    engine = _engine(backend)
    long = _generation(backend, "long", list(range(200)) + [1] * 250, max_new=50, plan=Plan())
    shorts = [_generation(backend, f"n{i}", [1, 2], max_new=2, plan=Plan()) for i in range(4)]
    assert engine.admit(long)
    assert [engine.admit(s) for s in shorts] == [True, True, True, False]
    for one in list(engine.active):
        engine.remove(one)
    assert engine.reason_not_to_fit(513)
    wide = [_generation(backend, f"w{i}", [1] * 480, max_new=30, plan=Plan()) for i in range(4)]
    assert [engine.admit(s) for s in wide] == [True, True, True, True]
    for one in list(engine.active):
        engine.remove(one)


def test_a_step_that_breaks_leaves_a_clean_engine(backend: MlxBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, lost = _engine(backend), _generation(backend, "lost")
    [alone] = generate(backend, [_generation(backend)])
    real = engine.body

    def broken(*args: Any, **kwargs: Any) -> Any:
        if lost.n_generated:
            raise RuntimeError("planted fault")
        return real(*args, **kwargs)

    monkeypatch.setattr(engine, "body", broken)
    assert engine.admit(lost)
    while not lost.n_generated:
        engine.step()
    with pytest.raises(RuntimeError, match="planted"):
        engine.step()
    engine.remove(lost)
    monkeypatch.undo()
    [again] = generate(backend, [_generation(backend)])
    assert again.tokens == alone.tokens
    assert_same(again.captured, alone.captured, TOLERANCE["float32"])


def test_padding_rows_never_leave_gpt2s_position_table(tmp: Path) -> None:
    """A long sequence beside a longer chunk is padded past the last position; MLX would read beyond the table."""
    backend = _load(tiny_checkpoint("gpt2", tmp), Limits(n_slots=4, context_tokens=512, cache_tokens=4096))
    long = list(np.random.default_rng(0).integers(0, 250, 508))
    plan = Plan((Hook("resid_post.*", capture=Capture()),))
    near_end = sequence(backend, [int(t) for t in long], plan, mode="generate", max_new=4, name="near")
    engine, rows = _engine(backend), dict[str, list[Rows]]()
    engine.generator.prefill_step_size = 500
    assert engine.admit(near_end)
    _step(engine, rows)  # 500 rows read; 7 to come
    assert engine.admit(sequence(backend, [5] * 400, Plan(), mode="generate", max_new=2, name="other"))
    while near_end.n_generated < 4:
        _step(engine, rows)
    forced = run(backend, near_end.tokens[:-1], plan, prompt_length=508)
    assert_same(collect(rows["near"]), forced, TOLERANCE["float32"])
    backend.close()


def test_it_lives_on_whatever_thread_built_it(tmp: Path) -> None:
    folder, made = tiny_checkpoint("llama", tmp), list[int]()

    def work() -> None:
        backend = _load(folder, CHUNKED)
        made.extend(generate(backend, [_generation(backend)])[0].tokens)
        backend.close()

    thread = Thread(target=work)
    thread.start()
    thread.join()
    backend = _load(folder, CHUNKED)
    assert made == generate(backend, [_generation(backend)])[0].tokens
    backend.close()
