"""What the backends use of their libraries that those do not promise: named here, so that a release which moves one of them
fails in this place, with its name, and not in the middle of a generation.

Run it against a version before the ranges of pyproject.toml are widened to it.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest

pytest.importorskip("torch")

TRANSFORMERS = {
    "generation.continuous_batching.ContinuousBatchingManager._create_batch_processor": ("self",),
    "generation.continuous_batching.continuous_api.ContinuousBatchProcessor._generation_step": ("self", "model"),
    "generation.continuous_batching.continuous_api.ContinuousBatchProcessor.prepare_next_batch": ("self",),
    "generation.continuous_batching.continuous_api.ContinuousBatchProcessor.update_batch": ("self",),
    "generation.continuous_batching.model_runner.ModelRunner._sample": ("self", "scores", "output_ids"),
    "generation.continuous_batching.requests.RequestState": ("request_id", "initial_tokens", "max_new_tokens"),
    "integrations.sdpa_attention.sdpa_attention_forward": ("module", "query", "key", "value", "attention_mask"),
    "generation.continuous_batching.continuous_api.PagedAttentionCache": ("config", "device"),
    "integrations.accelerate.accelerate_dispatch": ("model", "device_map"),
    "integrations.sdpa_attention.repeat_kv": ("hidden_states", "n_rep"),
}
"""Of transformers: what is called, and arguments that it must have."""

MLX_LM = {
    "utils._get_classes": ("config",),
    "utils.load_model": ("model_path", "lazy", "model_config", "get_model_classes"),
    "generate.BatchGenerator.insert": ("self", "prompts", "caches", "all_tokens"),
    "generate.BatchGenerator.remove": ("self",),
    "models.base.create_causal_mask": ("N", "offset"),
    "models.cache.BatchKVCache.update_and_fetch": ("self", "keys", "values"),
}


@pytest.mark.parametrize(
    ("library", "path", "needed"),
    [
        *(("transformers", path, needed) for path, needed in TRANSFORMERS.items()),
        *(("mlx_lm", path, needed) for path, needed in MLX_LM.items()),
    ],
)
def test_it_is_there_and_takes_what_we_give(library: str, path: str, needed: tuple[str, ...]) -> None:
    pytest.importorskip(library)
    found = inspect.signature(_found(library, path)).parameters
    missing = [name for name in needed if name not in found]
    assert not missing, f"{library} {version(library.replace('_', '-'))}: {path} takes {list(found)}"


def test_the_attention_is_where_we_put_it() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=1)
    config._attn_implementation_internal = "sdpa"
    assert config._attn_implementation == "sdpa"


def test_torch_packs_weights_as_linear_asks() -> None:
    import torch

    if torch.backends.mkldnn.is_available():
        schema = str(torch.ops.mkldnn._linear_pointwise.default._schema)
        assert "Tensor X, Tensor W, Tensor? B, str attr" in schema


def _found(library: str, path: str) -> Any:
    """The thing at a dotted path: modules as far as they go, then what is in them."""
    names = path.split(".")
    for n in range(len(names), -1, -1):
        try:
            found: Any = import_module(".".join([library, *names[:n]]))
        except ModuleNotFoundError:
            continue
        for name in names[n:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"no module {library}")
