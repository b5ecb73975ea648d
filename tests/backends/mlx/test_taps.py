"""Taps and the attention dispatcher: there only while someone asks, and gone without a trace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from probewire.backends.mlx.backend import MlxBackend
from probewire.protos.edits import Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.spec import Capture, Hook, Plan
from tests.parity.harness import every_site, generate, load, run, sequence
from tests.tiny_models import FAMILIES, tiny_checkpoint

TOKENS = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3]


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def _load(folder: Path) -> MlxBackend:
    backend = load("mlx", folder)
    assert isinstance(backend, MlxBackend)
    return backend


def _classes(model: Any) -> dict[str, type]:
    return {name: type(module) for name, module in model.named_modules()}


def _attention_names() -> dict[str, Any]:
    name = "scaled_dot_product_attention"
    return {
        m: getattr(sys.modules[m], name)
        for m in sys.modules
        if m.startswith("mlx_lm.") and hasattr(sys.modules[m], name)
    }


@pytest.mark.parametrize("family", list(FAMILIES))
def test_nothing_is_left_behind(family: str, tmp: Path) -> None:
    folder = tiny_checkpoint(family, tmp)
    _load(folder).close()  # imports the family's module
    functions = _attention_names()
    backend = _load(folder)
    model, classes = backend.model, _classes(backend.model)
    plan = Plan((Hook("resid_post.1", edit=Scale(2.0)), *every_site(backend, "generate").hooks))
    generate(backend, [sequence(backend, TOKENS, plan, mode="generate", max_new=3)])
    run(backend, TOKENS, plan)
    assert _classes(model) != classes
    run(backend, TOKENS, Plan())
    assert _classes(model) == classes, "a forward that nobody reads runs untapped"
    run(backend, TOKENS, plan)
    backend.close()
    assert _attention_names() == functions
    stock = model(mx.array([TOKENS]))
    assert np.isfinite(np.array(stock)).all(), "the model works on its own"


def test_models_in_one_process_do_not_disturb_each_other(tmp: Path) -> None:
    one, other = _load(tiny_checkpoint("llama", tmp)), _load(tiny_checkpoint("llama", tmp, seed=1))
    plans = [every_site(b) for b in (one, other)]
    before = [run(b, TOKENS, p) for b, p in zip((one, other), plans, strict=True)]
    first = sequence(one, TOKENS, plans[0], mode="generate", max_new=4)
    assert one.engine is not None
    assert one.engine.admit(first)
    after: Any = None
    while first.n_generated < 4:
        one.engine.step()
        after = run(other, TOKENS, plans[1])
    stock = np.array(one.model(mx.array([TOKENS])))[0]
    logits = next(c.values for (_, site, _), c in before[0].items() if site == "logits")
    assert np.allclose(stock, logits, atol=1e-4), "plain calls of a probed model are mlx-lm's own"
    one.close()
    again = run(other, TOKENS, plans[1])
    for key, found in before[1].items():
        assert np.array_equal(found.values, after[key].values), key
        assert np.array_equal(found.values, again[key].values), key
    other.close()


def test_raw_modules(tmp: Path) -> None:
    backend = _load(tiny_checkpoint("gpt2", tmp))
    named = run(backend, TOKENS, Plan((Hook("mlp_out.1", capture=Capture()),)))[0, "mlp_out.1", ""].values
    for path in ("model.h.1.mlp", "transformer.h.1.mlp"):
        site = f"module:{path}:output"
        assert np.array_equal(run(backend, TOKENS, Plan((Hook(site, capture=Capture()),)))[0, site, ""].values, named)
    with pytest.raises(InvalidArgument, match="no module"):
        sequence(backend, TOKENS, Plan((Hook("module:model.h.9.mlp:output", capture=Capture()),)))
    backend.close()


@pytest.mark.parametrize(
    ("family", "path", "reason"),
    [
        ("llama", "model.layers.0.self_attn.rope:input", "2 times"),
        ("llama", "lm_head:output", "0 times"),
        ("llama", "model:input", "no rows"),
        ("llama", "model:output", ""),
        ("qwen3", "model.layers.0.self_attn.q_norm:output", ""),
        ("gemma3_text", "model.layers.0.self_attn.q_norm:output", "no rows"),  # heads before rows
        ("gpt_oss", "model.layers.0.mlp.experts.gate_proj:output", "no rows"),  # sorted by expert when there are many
        ("gpt_oss", "model.layers.0.mlp.experts:input", ""),
    ],
)
def test_raw_modules_without_token_rows_are_refused(family: str, path: str, reason: str, tmp: Path) -> None:
    """Before the first forward, and whatever the prompt's length happens to be equal to."""
    backend = _load(tiny_checkpoint(family, tmp))
    plan = Plan((Hook(f"module:{path}", capture=Capture()),))
    run(backend, TOKENS, every_site(backend))  # leaves its taps attached
    if reason:
        with pytest.raises(InvalidArgument, match=reason):
            sequence(backend, TOKENS[:4], plan)
    else:
        assert run(backend, TOKENS[:4], plan)[0, f"module:{path}", ""].positions == (0, 1, 2, 3)
    backend.close()
