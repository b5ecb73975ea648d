"""What a mixture's router gives and its experts are given, on MLX: the same numbers as on PyTorch, whose experts are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models.switch_layers import SwitchGLU

pytest.importorskip("torch")

from probewire.backends.mlx.mixtures import dense_weights, given, n_experts_of, replayed, taken, unfaithful
from probewire.backends.model.families import BODIES
from probewire.protos.edits import Add, Replace, Zeros
from probewire.protos.spec import Capture, Hook, Plan
from probewire.protos.tensors import Tensor
from tests.backends.derived import write
from tests.backends.model.anatomy.test_derive import FULL
from tests.parity.harness import TOLERANCE, generate, load, run, sequence
from tests.tiny_models import tiny_checkpoint

TOKENS = list(range(10, 50))
KINDS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss")
SITES = ("router_logits.1", "expert_weights.1", "expert_weights.3", "resid_post.1")


class Block(nn.Module):
    """Adds its experts up, then does what no weight says."""

    def __init__(self, then: Any = None) -> None:
        super().__init__()
        self.gate, self.experts, self.then = nn.Linear(8, 4), SwitchGLU(8, 12, 4), then

    def __call__(self, x: mx.array) -> mx.array:
        logits = self.gate(x)
        chosen = mx.argpartition(-logits, kth=1, axis=-1)[..., :2]
        weights = mx.softmax(mx.take_along_axis(logits, chosen, axis=-1), axis=-1)
        y = (self.experts(x, chosen) * weights[..., None]).sum(-2) + x
        return y if self.then is None else self.then(y)


@pytest.mark.parametrize("then", [None, lambda y: 2.5 * y, mx.tanh, lambda y: mx.flip(y, -1)])
def test_weights_are_those_by_which_a_block_adds_up_or_it_is_seen(then: Any) -> None:
    """A factor behind the sum is part of the weight; what is no sum of the experts, channel by channel, is found out."""
    mx.random.seed(0)
    block, x = Block(then), mx.random.normal((2, 5, 8))
    chosen = mx.argpartition(-block.gate(x), kth=1, axis=-1)[..., :2]
    gave = block.experts(x, chosen)
    assert given((x, chosen), gave) is not None
    assert given((x, x), gave) is None
    call = replayed(block, (x,), block.experts)
    dense = dense_weights(chosen, taken(call, gave), n_experts_of(block.experts))
    off = unfaithful(block.experts, call, x, dense, gave)
    linear = then is None or mx.allclose(then(x), 2.5 * x)
    assert (off < 1e-5) == bool(linear)
    if linear:
        assert np.allclose(np.array(dense.sum(-1)), 1.0 if then is None else 2.5)
    assert type(block.experts) is SwitchGLU


@pytest.mark.parametrize("kind", KINDS)
def test_both_backends_give_the_same(kind: str, tmp_path: Path) -> None:
    """In runs, beside another sequence, under an edit of the router, and while generating."""
    folder = tiny_checkpoint(kind, tmp_path) if kind == "gpt_oss" else write(kind, tmp_path, **FULL[kind][0])
    torch, mlx = load("torch", folder), load("mlx", folder)
    n_experts = mlx.info.n_experts
    assert n_experts == torch.info.n_experts
    push = Hook("router_logits.1", edit=Add(Tensor.of(np.linspace(-3, 3, n_experts).astype(np.float32))))
    reads = tuple(Hook(site, capture=Capture()) for site in SITES)
    plain = run(torch, TOKENS, Plan(reads))
    for plan in (Plan(reads), Plan((push, *reads))):
        expected, alone = run(torch, TOKENS, plan), run(mlx, TOKENS, plan)
        neighbour = sequence(mlx, TOKENS[::-1], Plan((Hook("mlp_out.1", edit=Replace(Zeros())),)), name="other")
        beside = mlx.run([neighbour, sequence(mlx, TOKENS, plan, name="mine")])[1]
        for key, found in expected.items():
            assert _error(alone[key].values, found.values) <= TOLERANCE["float32"], key
        for row in beside.rows:
            assert _error(row.values[0], alone[row.hook, row.sites[0], ""].values) <= TOLERANCE["float32"]
    assert _error(expected[2, "expert_weights.1", ""].values, plain[1, "expert_weights.1", ""].values) > 1e-2
    plan = Plan((push, *reads))
    [made] = generate(mlx, [sequence(mlx, TOKENS, plan, mode="generate", max_new=4)])
    forced = run(mlx, made.tokens[:-1], plan)
    for key, found in forced.items():
        assert _error(made.captured[key].values, found.values) <= TOLERANCE["float32"], key
    torch.close()
    mlx.close()


def _error(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-9))


def test_bodies_have_transformers_names() -> None:
    """By which raw modules are called on both backends."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    for kind, body in BODIES.items():
        classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING
        assert classes[type(AutoConfig.for_model(kind))].base_model_prefix == body
