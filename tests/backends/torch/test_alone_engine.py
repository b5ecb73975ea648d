"""The engine that takes sequences one after another: what it generates is what transformers' own `generate` does, whatever the
library keeps between forwards, and hooks mean there what they mean in a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from probewire.backends.alone_engine import AloneEngine
from probewire.backends.batch_engine import BatchEngine
from probewire.backends.hooks.base import Backend
from probewire.backends.model.limits import Limits
from probewire.backends.torch.own_cache import OwnCache
from probewire.protos.edits import Add, Scale
from probewire.protos.errors import Internal, InvalidArgument, ProbewireError, ResourceExhausted
from probewire.protos.spec import Capture, Condition, Hook, Plan, Where
from tests.backends.derived import write
from tests.backends.torch.one_by_one import KINDS, own_generation
from tests.parity.beside import MOST, Beside
from tests.parity.harness import CHUNKED, TOLERANCE, assert_same, generate, load, relative_error, run, sequence
from tests.tiny_models import tiny_checkpoint

PROMPT, OTHERS, N_NEW = list(range(40, 63)), (list(range(9, 12)), list(range(90, 121))), 6
"""The prompt is longer than a piece, and with its tokens than any window here."""
OFTEN = (
    "mamba",
    "recurrent_gemma",
    "falcon_h1",
    "lfm2",
    "qwen3_5_text",
    "deepseek_v3",
    "llama4_text",
    "stablelm",
    "gptj",
    "rwkv",
)
"""Tested each time; the others with `make test-all`."""
STEPS_OTHERWISE = {"nemotron_h", "zamba2"}
"""The library bounds their time steps from below in a whole forward, and not for a token (float64 shows the same difference)."""
ALONE = {"rwkv"}
"""Whose library mixes the sequences of a batch while generating."""
READ_WHOLE = {"mamba", "falcon_mamba", "recurrent_gemma", "jamba", "zamba2"}
"""Whose library does not go on from a state by more than a row."""

Made = Callable[[str], tuple[Backend, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    loaded: dict[str, tuple[Backend, Path]] = {}

    def one(name: str) -> tuple[Backend, Path]:
        if name not in loaded:
            kind, fields = KINDS[name]
            folder = write(kind, tmp_path_factory.mktemp(name), **fields)
            loaded[name] = load("torch", folder), folder
        return loaded[name]

    yield one
    for backend, _ in loaded.values():
        backend.close()


def _every(backend: Backend) -> tuple[Hook, ...]:
    """Captures of all that generations offer, at the layers that have it."""
    names = [
        name
        for site in backend.info.sites
        if site.generate
        for name in ([site.name] if site.layers is None else [f"{site.name}.{layer}" for layer in site.layers])
    ]
    return tuple(Hook(name, capture=Capture()) for name in names)


def _stream(backend: Backend) -> str:
    return "resid_post.1" if backend.info.site("resid_post") else "resid_pre.1"


def _direction(backend: Backend, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=backend.info.d_model).astype(np.float32)


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_it_generates_what_the_library_does_beside_neighbours(name: str, made: Made) -> None:
    backend, folder = made(name)
    info = backend.info
    assert info.generate, info.generate_note
    assert bool(info.batching) == (name in ALONE), info.batching
    assert ("more than rounding" in info.generate_note) == (name in STEPS_OTHERWISE), info.generate_note
    assert ("read whole" in info.generate_note) == (name in READ_WHOLE), info.generate_note
    own = own_generation(folder, PROMPT, N_NEW)
    steered = Plan((Hook(_stream(backend), edit=Add(_direction(backend, 1), alpha=4.0)),))
    plan = Plan(_every(backend))
    sequences = [
        sequence(backend, OTHERS[0], steered, mode="generate", max_new=N_NEW, name="short"),
        sequence(backend, PROMPT, plan, mode="generate", max_new=N_NEW, name="mine"),
        sequence(backend, OTHERS[1], Plan(), mode="generate", max_new=N_NEW, name="long"),
    ]
    _, mine, _ = generate(backend, sequences, cancel_after={"long": 2})
    assert mine.tokens[len(PROMPT) :] == own.tokens
    [logits] = [rows.values for (_, site, _), rows in mine.captured.items() if site == "logits"]
    assert relative_error(logits, own.logits) <= TOLERANCE["float32"]
    if name not in STEPS_OTHERWISE:
        forced = run(backend, mine.tokens[:-1], plan, prompt_length=len(PROMPT))
        assert_same(mine.captured, forced, TOLERANCE["float32"])
    assert backend.engine is not None
    assert backend.engine.cache_held == 0


@pytest.mark.parametrize(
    "name",
    [
        name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow)
        for name in KINDS
        if name not in STEPS_OTHERWISE
    ],
)
def test_what_an_edit_changes_is_carried_on_as_in_a_run(name: str, made: Made) -> None:
    """Edits of prompt rows, of generated rows and by a condition that the prompt decides: states carry them."""
    backend, _ = made(name)
    at = _stream(backend)
    edits = (
        Hook(at, edit=Add(_direction(backend, 2), alpha=0.8), where=Where(positions=(3,))),
        Hook(at, edit=Add(_direction(backend, 3), alpha=0.8), where=Where(phase="generated")),
        Hook(at, edit=Scale(1.2), where=Where(when=Condition(-1e3, unit=5, latch="mean"))),
    )
    plan = Plan((*edits, *_every(backend)))
    plain, steered = (
        generate(backend, [sequence(backend, PROMPT, one, mode="generate", max_new=N_NEW)])[0] for one in (Plan(), plan)
    )
    forced = run(backend, steered.tokens[:-1], plan, prompt_length=len(PROMPT))
    assert_same(steered.captured, forced, TOLERANCE["float32"])
    without = run(backend, steered.tokens[:-1], Plan(_every(backend)), prompt_length=len(PROMPT))
    last = {site: rows.values[-1] for (_, site, _), rows in without.items()}
    [logits] = [rows.values for (_, site, _), rows in steered.captured.items() if site == "logits"]
    assert relative_error(logits[-1], last["logits"]) > 1e-3, f"edits must be seen; plain gave {plain.tokens}"


@pytest.mark.parametrize("name", ["mamba", "recurrent_gemma", "qwen3_5_text", "stablelm"])
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_two_plans_beside_each_other(name: str, made: Made, seed: int) -> None:
    worst, what = Beside(made(name)[0]).generate(seed)
    assert worst <= MOST, what


def test_keys_past_a_window_have_their_own_positions(tmp_path: Path) -> None:
    """The cache lets keys go; scores and probabilities keep an axis of all positions, and edits of keys and values stay."""
    backend = load("torch", tiny_checkpoint("mistral", tmp_path))
    assert backend.generate_alone("a test of it")
    edits = (
        Hook("k.1", edit=Scale(0.5), where=Where(positions=(len(PROMPT) - 2, len(PROMPT) + 1))),
        Hook("v.2", edit=Scale(-1.0), where=Where(phase="generated")),
        Hook("attn_scores.0", edit=Scale(0.7), where=Where(phase="generated")),
    )
    for plan in (Plan(_every(backend)), Plan((*edits, *_every(backend)))):
        [made] = generate(backend, [sequence(backend, PROMPT, plan, mode="generate", max_new=12)])
        assert {"attn_scores.0", "attn_probs.1", "k.1"} <= {site for _, site, _ in made.captured}
        assert_same(
            made.captured, run(backend, made.tokens[:-1], plan, prompt_length=len(PROMPT)), TOLERANCE["float32"]
        )
    backend.close()


def test_a_model_without_a_table_generates_and_its_modules_are_read(tmp_path: Path) -> None:
    folder = write(
        "nanochat",
        tmp_path,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    backend = load("torch", folder)
    info = backend.info
    assert info.family == "unknown"
    assert [site.name for site in info.sites] == ["logits"]
    assert info.generate, info.generate_note
    assert not info.batching
    assert "is not known" in info.generate_note
    hooks = (
        Hook("module:model.layers.1:output", capture=Capture()),
        Hook("module:model.layers.0.mlp:output", edit=Scale(0.5), where=Where(phase="generated")),
        Hook("logits", capture=Capture()),
    )
    for plan in (Plan(hooks[:1] + hooks[2:]), Plan(hooks)):
        [found] = generate(backend, [sequence(backend, PROMPT, plan, mode="generate", max_new=N_NEW)])
        assert_same(
            found.captured, run(backend, found.tokens[:-1], plan, prompt_length=len(PROMPT)), TOLERANCE["float32"]
        )
    [plain] = generate(backend, [sequence(backend, PROMPT, Plan(), mode="generate", max_new=N_NEW)])
    assert plain.tokens[len(PROMPT) :] == own_generation(folder, PROMPT, N_NEW).tokens
    backend.close()


def test_modules_that_a_token_does_not_pass_are_refused_while_generating(made: Made) -> None:
    backend, _ = made("rwkv")
    plan = Plan((Hook("module:rwkv.blocks.0.attention.time_shift:output", capture=Capture()),))
    run(backend, PROMPT, plan)
    with pytest.raises(InvalidArgument, match="while generating, the model calls this module otherwise"):
        sequence(backend, PROMPT, plan, mode="generate")


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (RuntimeError("planted fault"), Internal, "forward of this sequence failed: RuntimeError: planted fault"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            ResourceExhausted,
            "shorten the prompt",
        ),
    ],
)
def test_what_the_library_raises_ends_one_sequence(
    error: Exception, kind: type[ProbewireError], told: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _ = made("qwen3_5_text")
    [alone] = generate(backend, [sequence(backend, OTHERS[1], Plan(), mode="generate", max_new=N_NEW)])
    real = OwnCache.rows

    def faulty(self: OwnCache, state: Any, tokens: Any, position: int) -> Any:
        made = real(self, state, tokens, position)
        if position == len(PROMPT):  # after the state has been written to
            raise error
        return made

    monkeypatch.setattr(OwnCache, "rows", faulty)
    engine = backend.engine
    assert engine is not None
    bad = sequence(backend, PROMPT, Plan(), mode="generate", name="bad")
    good = sequence(backend, OTHERS[1], Plan(), mode="generate", max_new=N_NEW, name="good")
    assert engine.admit(bad)
    assert engine.admit(good)
    errors: list[Any] = []
    while good.n_generated < N_NEW:
        errors += [result.error for result in engine.step() if result.error is not None]
    engine.remove(good)
    assert len(errors) == 1
    assert isinstance(errors[0], kind)
    assert told in errors[0].message
    assert good.tokens == alone.tokens
    assert not engine.active
    assert engine.cache_held == 0


def test_a_pause_and_a_removal(made: Made) -> None:
    """A sequence left out stands still and goes on as if nothing had been; whoever leaves frees exactly what they held."""
    backend, _ = made("falcon_h1")
    engine = backend.engine
    assert isinstance(engine, AloneEngine)
    [plain] = generate(backend, [sequence(backend, PROMPT, Plan(), mode="generate", max_new=N_NEW)])
    held, other = (
        sequence(backend, tokens, Plan(), mode="generate", max_new=40, name=str(i))
        for i, tokens in enumerate((PROMPT, OTHERS[1]))
    )
    assert engine.admit(held)
    while held.n_generated < 2:
        engine.step()
    alone = engine.cache_held
    engine.pause(held)
    assert engine.step() == []
    assert engine.admit(other)
    for _ in range(8):
        engine.step()
    assert held.n_generated == 2
    assert engine.cache_held > alone
    engine.remove(other)
    assert engine.cache_held == alone
    engine.resume(held)
    while held.n_generated < N_NEW:
        engine.step()
    assert held.tokens == plain.tokens
    engine.remove(held)
    assert engine.cache_held == 0


def test_a_step_holds_the_models_thread_for_a_slice_of_time(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards so slow that each takes a slice: one a step, in turns, and prompts among them."""
    backend, _ = made("gptj")
    engine = backend.engine
    assert engine is not None
    assert isinstance(engine, BatchEngine)
    monkeypatch.setattr(engine, "batching", False)
    monkeypatch.setattr("probewire.backends.batch_engine.SLICE_S", 0.0)
    prompts = {"long": PROMPT, "short": [5], "other": [6, 7]}
    live = [sequence(backend, p, Plan(), mode="generate", max_new=9, name=name) for name, p in prompts.items()]
    assert all(engine.admit(one) for one in live)
    order = [result.sequence.id for _ in range(9) for result in engine.step()]
    assert order == ["long", "short", "other"] * 3
    engine.close()


@pytest.mark.parametrize("name", ["mamba", "qwen3_5_text", "deepseek_v3"])
def test_what_is_reserved_covers_what_is_held(name: str, made: Made) -> None:
    backend, _ = made(name)
    engine = backend.engine
    assert isinstance(engine, AloneEngine)
    assert engine.cost.state > 0 or name == "deepseek_v3"
    mine = sequence(backend, PROMPT, Plan(), mode="generate", max_new=20)
    assert engine.admit(mine)
    while mine.n_generated < 20:
        engine.step()
        assert 0 < engine.cache_held <= engine.cost.of(mine.plan.n_rows + 1)
    engine.remove(mine)


def test_nobody_is_admitted_beyond_slots_positions_and_bytes(made: Made) -> None:
    backend, _ = made("qwen3_5_text")
    engine = backend.engine
    assert isinstance(engine, AloneEngine)
    limits = Limits(n_slots=3, context_tokens=64, cache_tokens=128, chunk_tokens=8)
    cost = engine.cost
    asked = [sequence(backend, PROMPT, Plan(), mode="generate", max_new=8, name=str(i)) for i in range(4)]
    small = AloneEngine(engine.forward, engine.executor, limits, cost, None)
    assert [small.admit(one) for one in asked] == [True, True, True, False]
    small.close()
    assert small.admit(asked[0])
    assert not small.admit(asked[1], keep_tokens=96)
    tight = AloneEngine(engine.forward, engine.executor, limits, cost, cost.of(40) + cost.state // 2)
    assert [tight.admit(one) for one in asked] == [True, False, False, False]
    assert "bytes of cache" in str(tight.reason_not_to_fit(64 * 64))
    assert "positions" in str(small.reason_not_to_fit(65))


# ---- the check at load ----


def _faulty(monkeypatch: pytest.MonkeyPatch, change: Callable[[OwnCache, Any, Any, int], tuple[Any, Any, int]]) -> None:
    real = OwnCache.rows
    monkeypatch.setattr(OwnCache, "rows", lambda self, *given: real(self, *change(self, *given)))


def test_a_lost_state_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(own: OwnCache, state: Any, tokens: Any, position: int) -> tuple[Any, Any, int]:
        return own.new_state(), tokens, position

    _faulty(monkeypatch, forget)
    kind, fields = KINDS["qwen3_5_text"]
    backend = load("torch", write(kind, tmp_path, **fields))
    assert not backend.info.generate
    assert "differ from those of one forward over the same tokens by" in backend.info.generate_note
    assert backend.info.batching == ""
    assert backend.engine is None


def test_a_wrong_position_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _faulty(monkeypatch, lambda _, state, tokens, position: (state, tokens, position + (position > 0)))
    kind, fields = KINDS["gptj"]
    backend = load("torch", write(kind, tmp_path, **fields))
    assert not backend.info.generate


def test_states_that_neighbours_share_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from probewire.backends.torch.module_states import ModuleStates

    monkeypatch.setattr(ModuleStates, "find", lambda *_: None)  # recurrent_gemma keeps its own in its modules
    kind, fields = KINDS["recurrent_gemma"]
    backend = load("torch", write(kind, tmp_path, **fields))
    assert not backend.info.generate
    assert "one sequence" in backend.info.generate_note or "its logits differ from" in backend.info.generate_note


def test_an_edit_of_keys_that_the_cache_does_not_keep_is_left_to_runs(made: Made) -> None:
    backend, _ = made("jetmoe")
    for name in ("k", "v"):
        site = backend.info.site(name)
        assert site is not None
        assert site.run
        assert not site.generate
        assert "while generating, differs from a run" in site.note


def test_a_batching_engine_that_fails_its_check_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probewire.backends.engine_fault", lambda _: "the engine's decode differs by 1.2")
    folder = tiny_checkpoint("llama", tmp_path)
    backend = load("torch", folder, limits=CHUNKED)
    assert backend.info.generate
    assert backend.info.batching == ""
    assert "own caches, stacked (the engine's decode differs by 1.2)" in backend.info.generate_note
    assert "noted" in str(backend.info)
    backend.close()
    monkeypatch.setattr("probewire.backends.batch_fault", lambda *_: "so does this one")
    backend = load("torch", folder, limits=CHUNKED)
    assert backend.info.batching == "the engine's decode differs by 1.2; so does this one"
    assert "because the engine's decode differs" in str(backend.info)
    backend.close()
