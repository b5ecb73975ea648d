"""Batches of the library's own caches: a sequence beside others is what it is alone, whoever comes, leaves, waits or fails, and
what would not be so is seen at load. That tokens are transformers' own is tested beside the engine that takes them alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from probewire.backends.alone_engine import CacheCost
from probewire.backends.batch_engine import BatchEngine
from probewire.backends.checkpoints.shrunk import plain_json, shrunk
from probewire.backends.deltas.factors import UNEMBED, BoundUse, BoundVariant, Factors
from probewire.backends.hooks.base import Backend
from probewire.backends.model.limits import Limits
from probewire.backends.torch.own_cache import OwnCache
from probewire.backends.torch.stacked import Stacks, parts_of
from probewire.backends.torch.tiny import write_tiny
from probewire.protos.edits import Add, Scale
from probewire.protos.errors import Internal
from probewire.protos.model import Sampling
from probewire.protos.spec import Capture, Hook, Plan, Where
from tests.backends.derived import write
from tests.backends.torch.one_by_one import KINDS
from tests.parity.harness import CHUNKED, TOLERANCE, assert_same, collect, generate, load, sequence
from tests.parity.opened import gap
from tests.tiny_models import tiny_checkpoint

LENGTHS = (23, 3, 31, 1, 12, 9)
"""Of prompts: past the windows of 8 here, within them, and of a single token."""
N_NEW = 7

Made = Callable[[str], Backend]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    loaded: dict[str, Backend] = {}

    def one(name: str) -> Backend:
        if name not in loaded:
            kind, fields = KINDS[name]
            loaded[name] = load("torch", write(kind, tmp_path_factory.mktemp(name), **fields))
        return loaded[name]

    yield one
    for backend in loaded.values():
        backend.close()


def _engine(backend: Backend) -> BatchEngine:
    assert isinstance(backend.engine, BatchEngine)
    return backend.engine


def _prompt(n: int) -> list[int]:
    return np.random.default_rng(n).integers(3, 250, size=n).tolist()


def _plan(backend: Backend, n: int) -> Plan:
    at = "resid_post.1" if backend.info.site("resid_post") else "resid_pre.1"
    vector = np.random.default_rng(n).normal(size=backend.info.d_model).astype(np.float32)
    edit = Hook(at, edit=Add(vector, alpha=0.1 * n), where=Where(phase="generated"))
    return Plan((edit, Hook(at, capture=Capture()), Hook("logits", capture=Capture())))


def _asked(backend: Backend, lengths: tuple[int, ...] = LENGTHS, new: int = N_NEW) -> list[Any]:
    return [
        sequence(
            backend,
            _prompt(n),
            _plan(backend, n),
            mode="generate",
            max_new=new,
            name=f"s{n}" if i == lengths.index(n) else f"s{n}-{i}",
        )
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    "name", ["falcon_h1", "qwen3_5_text", "recurrent_gemma", "deepseek_v3", "llama4_text", "stablelm", "gptj"]
)
def test_many_come_and_leave_and_each_is_as_alone(name: str, made: Made) -> None:
    backend = made(name)
    engine = _engine(backend)
    alone = [generate(backend, [one])[0] for one in _asked(backend)]
    shared, waiting = engine.n_shared, _asked(backend)
    rows: dict[str, list[Any]] = {one.id: [] for one in waiting}
    live = {one.id: one for one in waiting}
    for step in range(200):
        if waiting and step % 2 == 0:  # one comes every second step, while others generate
            assert engine.admit(waiting.pop(0))
        if step == 4:
            engine.pause(live["s23"])
        if step == 9:
            engine.resume(live["s23"])
        for result in engine.step():
            assert result.error is None, result.error
            assert not (result.sequence.id == "s23" and 4 <= step < 9)
            rows[result.sequence.id] += result.rows
            if result.sequence.n_generated == N_NEW:
                engine.remove(result.sequence)
                del live[result.sequence.id]
        if not live:
            break
    assert engine.n_shared > shared + N_NEW
    assert engine.cache_held == 0
    for one, want in zip(_asked(backend), alone, strict=True):
        assert_same(collect(rows[one.id]), want.captured, TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["mamba2", "lfm2", "deepseek_v2", "llama4_text", "bloom"])
def test_caches_come_apart_as_they_were(name: str, made: Made) -> None:
    """To the bit, and so do the numbers that count positions; nothing of the one is in the others."""
    own = _engine(made(name)).forward
    assert isinstance(own, OwnCache)
    lengths = (5, 19, 1)
    with torch.inference_mode():
        own.taps.executor.begin([], (1, 1))
        own.attach()
        states = [own.rows(own.new_state(), np.array(_prompt(n)), 0)[1] for n in lengths]
        before = [parts_of(state.held) for state in states]
        tensors = [[leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in one.leaves] for one in before]
        for one in before:
            one.leaves.clear()
        after = own.unstack(own.stack(states, lengths), lengths)
        assert states == []
        for state, wanted, old in zip(after, tensors, before, strict=True):
            found = parts_of(state.held)
            assert found.marks == old.marks
            assert [type(leaf) for leaf in found.leaves] == [type(leaf) for leaf in wanted]
            for got, want in zip(found.leaves, wanted, strict=True):
                assert torch.equal(got, want) if isinstance(got, torch.Tensor) else got == want
        storages = [leaf.untyped_storage().data_ptr() for leaf in parts_of(after[0].held).leaves if _grows(leaf)]
        others = [leaf.untyped_storage().data_ptr() for leaf in parts_of(after[1].held).leaves if _grows(leaf)]
        assert not set(storages) & set(others)


def _grows(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 2


def test_caches_that_are_not_alike_are_left_apart(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has another cache than was seen at load goes on alone."""
    backend = made("stablelm")
    engine = _engine(backend)
    alone = [generate(backend, [one])[0] for one in _asked(backend, (5, 9))]

    def unlike(*_: Any) -> Any:
        raise ValueError("caches of different make")

    monkeypatch.setattr(Stacks, "stack", unlike)
    shared = engine.n_shared
    found = generate(backend, _asked(backend, (5, 9)))
    assert engine.n_shared == shared
    assert [one.tokens for one in found] == [one.tokens for one in alone]


def test_what_the_library_raises_ends_those_of_that_forward(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far their caches came is not known. Whoever still reads their prompt goes on."""
    backend = made("qwen3_5_text")
    engine = _engine(backend)
    [alone] = generate(backend, _asked(backend, (31,)))
    real = OwnCache.rows_of_each
    calls: list[int] = []

    def faulty(self: OwnCache, *given: Any) -> Any:
        rows = real(self, *given)  # after the states have been written to
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("planted fault")
        return rows

    monkeypatch.setattr(OwnCache, "rows_of_each", faulty)
    first, second, reading = _asked(backend, (3, 1, 31))
    assert all(map(engine.admit, (first, second)))
    engine.step()
    engine.step()
    assert engine.admit(reading)
    errors: dict[str, Any] = {}
    while reading.n_generated < N_NEW:
        errors |= {result.sequence.id: result.error for result in engine.step() if result.error is not None}
    assert set(errors) == {"s3", "s1"}
    assert all(isinstance(error, Internal) and "planted fault" in error.message for error in errors.values())
    assert reading.tokens == alone.tokens
    engine.remove(reading)
    assert engine.cache_held == 0


def test_whoever_leaves_frees_what_they_held_at_once(made: Made) -> None:
    backend = made("deepseek_v3")
    engine = _engine(backend)
    long, short = _asked(backend, (31, 9), 40)
    assert engine.admit(long)
    while long.n_generated < 12:
        engine.step()
    by_itself = engine.cache_held
    assert engine.admit(short)
    while short.n_generated < 4:
        engine.step()
    grown = long.n_generated - 12
    assert engine.cache_held > by_itself + grown * engine.cost.position
    engine.remove(short)
    assert engine.cache_held == by_itself + grown * engine.cost.position
    engine.remove(long)
    assert engine.cache_held == 0


def test_padding_takes_no_memory_that_is_reserved(made: Made) -> None:
    """Sequences of very different lengths, or where there is no room for padding, do not share a forward."""
    backend = made("deepseek_v3")
    engine = _engine(backend)

    def shared(lengths: tuple[int, ...], free_bytes: int | None, cost: CacheCost) -> list[list[int]]:
        small = BatchEngine(engine.forward, engine.executor, CHUNKED, cost, free_bytes)
        small.batching = True
        asked = _asked(backend, lengths, 30)
        assert all(map(small.admit, asked))
        while min(one.n_generated for one in asked) < 2:
            small.step()
            assert small.cache_held <= small.max_bytes + small._for_padding
        groups = [[len(live.sequence.tokens) - live.sequence.n_generated for live in g.members] for g in small._groups]
        small.close()
        return groups

    cost = engine.cost
    assert shared((9, 12, 31), None, cost) == [[9, 12, 31]]
    assert shared((1, 2, 20, 70), None, cost) == [[1, 2, 20], [70]]
    tight = sum(cost.of(n + 30) for n in (9, 12, 31))
    assert shared((9, 12, 31), tight, cost) == [[9], [12], [31]]
    assert shared((9, 9, 31), tight + cost.of(1), cost) == [[9, 9], [31]]


def test_slots_and_positions_hold_as_ever(made: Made) -> None:
    backend = made("stablelm")
    engine = _engine(backend)
    limits = Limits(n_slots=2, context_tokens=64, cache_tokens=128, chunk_tokens=8)
    small = BatchEngine(engine.forward, engine.executor, limits, engine.cost, None)
    assert [small.admit(one) for one in _asked(backend, (9, 12, 3))] == [True, True, False]
    small.close()


def test_sampling_hangs_on_the_request_alone(made: Made) -> None:
    backend = made("lfm2")
    how = Sampling(max_new_tokens=N_NEW, temperature=0.9, top_p=0.9, seed=11, logprobs=3)
    mine = [
        sequence(backend, _prompt(9), Plan(), mode="generate", max_new=N_NEW, name="mine", sampling=how)
        for _ in range(2)
    ]
    [alone] = generate(backend, mine[:1])
    beside = generate(backend, [*_asked(backend, (23, 3)), mine[1]])[-1]
    assert beside.tokens == alone.tokens
    assert np.allclose([one or 0 for one in beside.logprobs], [one or 0 for one in alone.logprobs], atol=1e-4)


@pytest.mark.parametrize("name", ["lfm2", "stablelm"])
def test_variants_of_one_sequence_are_no_others(name: str, made: Made) -> None:
    """Deltas inside and at the output head, beside another variant and none."""
    backend = made(name)
    table, rng = backend.weight_table, np.random.default_rng(0)
    paths = {weight: table.named[weight] for weight in ("w_down.1", "w_unembed")}

    def asked(n: int, variant: int) -> Any:
        [one] = _asked(backend, (n,))
        if variant:
            factors = {
                UNEMBED if weight == "w_unembed" else found.linear.path: Factors(
                    *(
                        rng.normal(size=shape).astype(np.float32)
                        for shape in ((found.linear.d_in, 2), (2, found.linear.d_out))
                    )
                )
                for weight, found in paths.items()
            }
            one.plan.uses = (BoundUse(BoundVariant(f"v{variant}", variants.setdefault(variant, factors)), 0.1),)
        return one

    variants: dict[int, dict[str, Factors]] = {}
    which = ((23, 1), (9, 0), (3, 2), (12, 1))
    alone = [generate(backend, [asked(n, variant)])[0] for n, variant in which]
    [plain] = generate(backend, _asked(backend, (23,)))
    with_it, without = (one.captured[2, "logits", ""].values for one in (alone[0], plain))
    assert gap(with_it, without) > 1e-3, "the variant must be seen"
    beside = generate(backend, [asked(n, variant) for n, variant in which])
    for found, want in zip(beside, alone, strict=True):
        assert found.tokens == want.tokens
        assert_same(found.captured, want.captured, TOLERANCE["float32"])


# ---- the check at load ----


def _with(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]) -> None:
    real = getattr(OwnCache, name)
    monkeypatch.setattr(OwnCache, name, lambda self, *given: change(real, self, *given))


def _swapped(real: Any, own: OwnCache, stacked: Any, lengths: Any) -> Any:
    states = real(own, stacked, [min(lengths)] * len(lengths))
    return [*states[1:], states[0]]


def _unmasked(real: Any, own: OwnCache, stacked: Any, tokens: Any, positions: Any) -> Any:
    grows, own._stacks.grows = own._stacks.grows, False  # type: ignore[union-attr]
    try:
        return real(own, stacked, tokens, positions)
    finally:
        own._stacks.grows = grows  # type: ignore[union-attr]


def _one_position(real: Any, own: OwnCache, stacked: Any, tokens: Any, positions: Any) -> Any:
    forward = own._forward
    own._forward = lambda state, ids, at, given: forward(state, ids, np.full_like(at, at.max()), given)  # type: ignore[method-assign]
    try:
        return real(own, stacked, tokens, positions)
    finally:
        del own._forward


@pytest.mark.parametrize(
    ("name", "method", "change"),
    [
        ("mamba2", "unstack", _swapped),
        ("qwen3_5_text", "unstack", _swapped),
        ("deepseek_v3", "rows_of_each", _unmasked),
        ("stablelm", "rows_of_each", _one_position),
    ],
    ids=["states of a neighbour", "caches of a neighbour", "padding that is seen", "another one's position"],
)
def test_a_planted_fault_is_seen_at_load(
    name: str, method: str, change: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with(monkeypatch, method, change)
    kind, fields = KINDS[name]
    backend = load("torch", write(kind, tmp_path, **fields))
    assert backend.info.generate, backend.info.generate_note
    assert "shares forwards with others differs by" in backend.info.batching or "fail" in backend.info.batching
    assert not _engine(backend).batching
    backend.close()


def test_a_fault_past_a_window_is_seen_on_small_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a window that no prompt at load comes to."""

    def late(real: Any, own: OwnCache, stacked: Any, tokens: Any, positions: Any) -> Any:
        return (_unmasked if positions.max() > 14 else lambda real, *given: real(*given))(
            real, own, stacked, tokens, positions
        )

    monkeypatch.setattr("probewire.backends.batch_check.PROMPTS", ((5, 3), (3, 4)))
    _with(monkeypatch, "rows_of_each", late)
    monkeypatch.setattr("probewire.backends.engine_fault", lambda _: "the engine's decode differs by 1.2")
    backend = load("torch", tiny_checkpoint("mistral", tmp_path))
    assert "on small random weights of this config" in backend.info.batching
    backend.close()


def test_numbers_too_coarse_to_tell_are_tried_on_small_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, fields = KINDS["stablelm"]
    folder = write(kind, tmp_path, **{**fields, "num_hidden_layers": 2})
    fine = load("torch", folder, dtype="bfloat16")
    assert fine.info.batching == "", fine.info.batching
    fine.close()
    monkeypatch.setattr("probewire.backends.batch_check.ENGINE_TOLERANCE", {"bfloat16": np.inf})
    _with(monkeypatch, "rows_of_each", _unmasked)
    backend = load("torch", folder, dtype="bfloat16")
    assert "on small random weights of this config" in backend.info.batching
    backend.close()


@pytest.mark.parametrize("kind", ["mamba2", "nemotron_h"])
def test_states_of_published_sizes_are_made_small(kind: str, tmp_path: Path) -> None:
    """Their heads are tied to the model's width, and their layers are counted by a list."""
    small = shrunk(plain_json(AutoConfig.for_model(kind).to_json_string(use_diff=False)))
    write_tiny(tmp_path, small)
    tiny = load("torch", tmp_path)
    assert tiny.info.generate, tiny.info.generate_note
    assert tiny.info.batching == ""
    tiny.close()


def test_an_edit_of_keys_in_a_batch_is_carried_on(made: Made) -> None:
    """Written into the stacked cache's own rows, past a window too."""
    backend = made("stablelm")
    hooks = (
        Hook("k.1", edit=Scale(0.5), where=Where(phase="generated")),
        Hook("v.2", edit=Scale(-1.0), where=Where(phase="generated")),
        Hook("attn_scores.0", edit=Scale(0.7), where=Where(phase="generated")),
        *(Hook(site, capture=Capture()) for site in ("k.1", "v.2", "attn_scores.0", "attn_probs.1", "z.3", "logits")),
    )
    mine = [sequence(backend, _prompt(9), Plan(hooks), mode="generate", max_new=N_NEW, name="mine") for _ in range(2)]
    [alone] = generate(backend, mine[:1])
    beside = generate(backend, [*_asked(backend, (23, 3)), mine[1]])[-1]
    assert_same(beside.captured, alone.captured, TOLERANCE["float32"])
