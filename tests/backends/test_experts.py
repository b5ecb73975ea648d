"""Experts in dtypes that the libraries' own products of them do not know."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchGLU

from probewire.backends.mlx.experts import EachExpert, compute_each, stacked
from probewire.protos.spec import Capture, Hook, Plan
from tests.parity.harness import load, relative_error, run
from tests.tiny_models import tiny_checkpoint

TOKENS = list(range(3, 60))


@pytest.mark.parametrize("n_rows", [5, 40], ids=["as they come", "sorted by expert"])
@pytest.mark.parametrize("bias", [True, False])
def test_each_expert_is_the_grouped_product(n_rows: int, bias: bool) -> None:
    with mx.stream(mx.cpu):
        mx.random.seed(0)
        experts = SwitchGLU(8, 12, 4, bias=bias)
        for name, weight in experts.items():
            if bias and "bias" in weight:
                experts[name].bias = mx.random.normal(weight["bias"].shape)
        x, chosen = mx.random.normal((1, n_rows, 8)), mx.random.randint(0, 4, (1, n_rows, 2))
        expected = np.array(experts(x, chosen))
        for part in (experts.gate_proj, experts.up_proj, experts.down_proj):
            part.__class__ = EachExpert
        found = np.array(experts(x, chosen))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_each_matrix_of_all_experts_is_one_whichever_way_the_file_has_them() -> None:
    gate, up, down = (mx.random.normal((12, *shape)) for shape in ((3, 8), (3, 8), (8, 3)))  # more than ten: by number
    each = {
        f"model.layers.1.mlp.experts.{i}.{name}_proj.weight": value[i]
        for name, value in (("gate", gate), ("up", up), ("down", down))
        for i in (11, *range(11))
    }
    merged = {
        "model.layers.1.mlp.experts.gate_up_proj": mx.concatenate([gate, up], axis=1),
        "model.layers.1.mlp.experts.down_proj": down,
    }
    turned = {name: value.swapaxes(-1, -2) for name, value in merged.items()}
    router = {"model.layers.1.mlp.gate.weight": mx.ones((12, 8))}
    for found in (stacked(form | router, 8) for form in (each, merged, turned)):
        assert len(found) == 4
        for name, value in (("gate", gate), ("up", up), ("down", down)):
            assert mx.array_equal(found[f"model.layers.1.mlp.switch_mlp.{name}_proj.weight"], value)
        assert "model.layers.1.mlp.gate.weight" in found


def test_float32_keeps_the_grouped_product() -> None:
    experts = SwitchGLU(8, 12, 4)
    compute_each(experts, mx.float32)
    assert type(experts.up_proj) is not EachExpert


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_mixture_loads_in_every_dtype(tmp_path: Path, backend: str) -> None:
    """A load proves itself on the model; float64 is close to float32, too."""
    folder = tiny_checkpoint("gpt_oss", tmp_path)
    plan, found = Plan((Hook("logits", capture=Capture()),)), {}
    for dtype in ("float32", "float64", "bfloat16"):
        model = load(backend, folder, dtype=dtype)
        [captured] = run(model, TOKENS, plan).values()
        found[dtype] = captured.values
        model.close()
    assert relative_error(found["float64"], found["float32"]) < 1e-4
    assert np.isfinite(found["bfloat16"]).all()
