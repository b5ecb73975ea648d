"""A raw module's name means one tensor on both backends, in runs and in generations, beside whatever else is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.backends.hooks.base import Backend
from probewire.protos.edits import Add, Affine, Replace, Scale, Zeros
from probewire.protos.errors import InvalidArgument
from probewire.protos.sites import Site
from probewire.protos.spec import Capture, Condition, Hook, Plan, Where
from probewire.protos.tensors import Tensor
from tests.parity.harness import TOLERANCE, Array, generate, load, run, sequence
from tests.tiny_models import FAMILIES, tiny_checkpoint

TOKENS = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3]
NORMS = {"llama": "model.layers.1.post_attention_layernorm", "gemma2": "model.layers.1.pre_feedforward_layernorm"}


@pytest.fixture(scope="module", params=list(FAMILIES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Backend, Backend]:
    folder = tiny_checkpoint(request.param, tmp_path_factory.mktemp("tiny"))
    return load("torch", folder), load("mlx", folder)


@pytest.fixture(scope="module", params=["torch", "mlx"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return load(request.param, tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny")))


def _shared(torch: Backend, mlx: Backend) -> list[str]:
    """Raw sites outside the layers and in one of them, that both backends offer."""
    paths = [path for path in sorted(torch.points.paths) if path and ("layers." not in path or "layers.1." in path)]
    names = [
        f"module:{path}:{side}" for path in paths if ".h." not in path or ".h.1" in path for side in ("input", "output")
    ]
    return [n for n in names if not any(b.points.reason_to_refuse(Site.parse(n)) for b in (torch, mlx))]


def _error(found: Array, expected: Array) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-9))


def test_what_is_read_is_the_same_on_both_backends(pair: tuple[Backend, Backend]) -> None:
    names = _shared(*pair)
    assert len(names) >= 20
    plan = Plan(tuple(Hook(name, capture=Capture()) for name in names))
    torch, mlx = (run(backend, TOKENS, plan) for backend in pair)
    for i, name in enumerate(names):
        assert _error(mlx[i, name, ""].values, torch[i, name, ""].values) <= TOLERANCE["float32"], name


def test_an_edit_does_the_same_on_both_backends(pair: tuple[Backend, Backend]) -> None:
    plain = run(pair[0], TOKENS, Plan((Hook("logits", capture=Capture()),)))[0, "logits", ""].values
    changed = 0
    for name in _shared(*pair):
        plan = Plan(
            (Hook(name, edit=Scale(0.5), where=Where(spans=None, positions=(2, 5))), Hook("logits", capture=Capture()))
        )
        torch, mlx = (run(backend, TOKENS, plan)[1, "logits", ""].values for backend in pair)
        assert _error(mlx, torch) <= TOLERANCE["float32"], name
        changed += _error(torch, plain) > 1e-3
    assert changed >= 10


def test_an_affine_map_at_a_raw_module_is_that_of_its_numbers(pair: tuple[Backend, Backend]) -> None:
    """What reads the module's rows once more sees h + alpha·((h·A + c)·B)."""
    rng = np.random.default_rng(2)
    for name in _shared(*pair):
        before = run(pair[0], TOKENS, Plan((Hook(name, capture=Capture()),)))[0, name, ""].values
        width = before.shape[-1]
        a, b, c = (rng.normal(size=shape).astype(np.float32) / 4 for shape in ((width, 2), (2, width), (2,)))
        plan = Plan((Hook(name, edit=Affine(Tensor.of(a), Tensor.of(b), Tensor.of(c), 0.7), capture=Capture()),))
        for backend in pair:
            found = run(backend, TOKENS, plan)[0, name, ""].values
            assert _error(found, before + 0.7 * ((before @ a + c) @ b)) <= TOLERANCE["float32"], name


def test_what_is_kept_of_a_module_is_its_own_output_in_generations_too(pair: tuple[Backend, Backend]) -> None:
    """The model's code may write into what a module gave: gpt2's `embeddings += positions` in mlx-lm."""
    names = [name for name in _shared(*pair) if name.endswith(":output")]
    plan = Plan(tuple(Hook(name, capture=Capture()) for name in names))
    for backend in pair:
        [made] = generate(backend, [sequence(backend, TOKENS, plan, mode="generate", max_new=3)])
        forced = run(backend, made.tokens[:-1], plan)
        for i, name in enumerate(names):
            found, expected = made.captured[i, name, ""], forced[i, name, ""]
            assert found.positions == expected.positions
            assert _error(found.values, expected.values) <= TOLERANCE["float32"], name


def test_the_embedding_of_gpt2_is_without_positions(tmp_path: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_checkpoint("gpt2", tmp_path_factory.mktemp("tiny"))
    for backend in (load("torch", folder), load("mlx", folder)):
        name = "module:transformer.wte:output"
        rows = run(backend, TOKENS, Plan((Hook(name, capture=Capture()),)))[0, name, ""].values
        assert np.array_equal(rows, backend.weight("wte.weight")[TOKENS])


@pytest.mark.parametrize("mode", ["run", "generate"])
def test_a_raw_hook_changes_nothing_for_a_neighbour(llama: Backend, mode: str) -> None:
    """An edit at the input of a norm is a copy; what others write into the residual stream there must not go into it."""
    direction = Tensor.of(np.random.default_rng(0).normal(size=64).astype(np.float32))
    steered = Plan((Hook("resid_mid.1", edit=Add(direction, alpha=4.0)), Hook("logits", capture=Capture())))
    raw = Plan((Hook(f"module:{NORMS['llama']}:input", edit=Scale(1.5)),))
    if mode == "run":
        alone = run(llama, TOKENS, steered)[1, "logits", ""].values
        results = llama.run([sequence(llama, TOKENS, raw, name="raw"), sequence(llama, TOKENS, steered, name="mine")])
        beside = results[1].rows[0].values[0]
    else:
        [one] = generate(llama, [sequence(llama, TOKENS, steered, mode="generate", max_new=4)])
        both = [
            sequence(llama, TOKENS, p, mode="generate", max_new=4, name=n) for n, p in (("raw", raw), ("mine", steered))
        ]
        two = generate(llama, both)[1]
        assert two.tokens == one.tokens
        alone, beside = one.captured[1, "logits", ""].values, two.captured[1, "logits", ""].values
    assert _error(beside, alone) <= TOLERANCE["float32"]


def test_both_names_of_one_tensor_in_one_request(llama: Backend) -> None:
    """What is written into the residual stream reaches it, and the norm reads that, edited once more."""
    direction = np.random.default_rng(0).normal(size=64).astype(np.float32)
    raw = f"module:{NORMS['llama']}:input"
    both = Plan(
        (
            Hook(raw, edit=Scale(1.5), capture=Capture()),
            Hook("resid_mid.1", edit=Add(Tensor.of(direction), alpha=4.0), capture=Capture()),
            Hook("mlp_resid.1", capture=Capture()),
            Hook("mlp_out.1", capture=Capture()),
            Hook("resid_post.1", capture=Capture()),
        )
    )
    found = run(llama, TOKENS, both)
    plain = run(llama, TOKENS, Plan((Hook("resid_mid.1", capture=Capture()),)))[0, "resid_mid.1", ""].values
    stream = found[1, "resid_mid.1", ""].values
    assert _error(stream, plain + 4 * direction) <= TOLERANCE["float32"]
    assert _error(found[0, raw, ""].values, 1.5 * stream) <= TOLERANCE["float32"]
    assert _error(found[2, "mlp_resid.1", ""].values, 1.5 * stream) <= TOLERANCE["float32"]
    assert (
        _error(found[4, "resid_post.1", ""].values, stream + found[3, "mlp_out.1", ""].values) <= TOLERANCE["float32"]
    )


def test_names_of_one_tensor_act_in_plan_order(llama: Backend) -> None:
    raw, named = "module:model.layers.1:output", "resid_post.1"
    for first, second in ((raw, named), (named, raw)):
        zeroed = Plan(
            (Hook(first, edit=Scale(3.0)), Hook(second, edit=Replace(Zeros())), Hook(named, capture=Capture()))
        )
        assert not run(llama, TOKENS, zeroed)[2, named, ""].values.any()
        before = Plan(
            (Hook(first, edit=Scale(3.0)), Hook(second, capture=Capture(before=True)), Hook(named, capture=Capture()))
        )
        found = run(llama, TOKENS, before)
        assert _error(found[2, named, ""].values, 3 * found[1, second, ""].values) <= TOLERANCE["float32"]


def test_widths_of_raw_modules_are_checked_before_the_first_token(llama: Backend) -> None:
    """Two rows of a vector on a prompt of two tokens would otherwise give each row another one."""
    site = "module:model.layers.1.mlp.down_proj:input"
    for shape in ((2, 96), (64,), (1,)):
        misfit = Plan((Hook(site, edit=Add(Tensor.of(np.ones(shape, np.float32)))),))
        with pytest.raises(InvalidArgument, match=r"\[96\]"):
            sequence(llama, TOKENS[:2], misfit)
    with pytest.raises(InvalidArgument, match="outside 0 … 95"):
        sequence(llama, TOKENS, Plan((Hook(site, edit=Scale(2.0, units=(96,))),)))


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("reads", [{"unit": 1}, {"direction": Tensor.of(np.ones(16, np.float32))}])
def test_a_condition_reads_one_vector_a_row(
    backend: str, reads: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """qwen3's norm of queries has rows [head, d_head]; a mask of them would end everybody's forward."""
    model = load(backend, tiny_checkpoint("qwen3", tmp_path_factory.mktemp("tiny")))
    site, when = "module:model.layers.1.self_attn.q_norm:input", Condition(0.0, **reads)
    for hook in (
        Hook(site, edit=Scale(1.5), where=Where(when=when)),
        Hook(site, capture=Capture(), where=Where(when=when)),
    ):
        with pytest.raises(InvalidArgument, match="a condition reads one vector a row"):
            sequence(model, TOKENS, Plan((hook,)))


@pytest.mark.parametrize("where", ["edit", "capture"])
def test_whatever_a_hook_raises_is_its_own(llama: Backend, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind all checks: a mask of another shape than rows, as a fault of ours would make it."""
    edit, capture = (Scale(2.0), None) if where == "edit" else (None, Capture())
    bad = Plan((Hook("resid_post.1", edit=edit, capture=capture, where=Where(when=Condition(0.0, unit=1))),))
    executor: Any = llama.executor  # pyright: ignore[reportAttributeAccessIssue] - both have one
    good = Plan((Hook("resid_post.1", edit=Scale(0.5)), Hook("logits", capture=Capture())))
    alone = run(llama, TOKENS, good)
    monkeypatch.setattr(executor, "_evaluate", lambda *_: executor.ops.device(np.ones((2, 3), np.float32)) > 0)
    failed, fine = llama.run([sequence(llama, TOKENS, plan, name=n) for n, plan in (("bad", bad), ("good", good))])
    assert failed.error is not None
    assert fine.error is None
    assert _error(fine.rows[0].values[0], alone[1, "logits", ""].values) <= TOLERANCE["float32"]


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_raw_hook_on_a_router_is_the_router_logits(backend: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """On torch a router gives a tuple: logits, weights, experts."""
    model = load(backend, tiny_checkpoint("gpt_oss", tmp_path_factory.mktemp("tiny")))
    raw = "module:model.layers.1.mlp.router:output"
    named = Plan((Hook("router_logits.1", edit=Scale(-1.0), capture=Capture()), Hook("logits", capture=Capture())))
    other = Plan((Hook(raw, edit=Scale(-1.0), capture=Capture()), Hook("logits", capture=Capture())))
    alone = run(model, TOKENS, named)
    results = model.run([sequence(model, TOKENS, plan, name=n) for n, plan in (("raw", other), ("named", named))])
    for result, site in zip(results, (raw, "router_logits.1"), strict=True):
        assert result.error is None
        rows = {rows.hook: rows.values[0] for rows in result.rows}
        assert _error(rows[0], alone[0, "router_logits.1", ""].values) <= TOLERANCE["float32"], site
        assert _error(rows[1], alone[1, "logits", ""].values) <= TOLERANCE["float32"], site
