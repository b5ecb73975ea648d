"""A request of each kind that works on any model, for the commands that /docs shows. The model left out: the only one."""

from __future__ import annotations

from typing import Any

__all__ = ["BODIES"]

_TEXT = "The capital of France is"
_CAPTURE: dict[str, Any] = {"site": "resid_post.1", "capture": {}}
_SCALED = {"site": "mlp_out.1", "edit": {"scale": {"factor": 0.5}}}
_MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
_LOGIT = {"logit": {"token": 42}}
_SOURCE = "org/saes/layer-1"

BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/models/load"): {"model": "meta-llama/Llama-3.2-1B"},
    ("post", "/v1/models/unload"): {"model": "meta-llama/Llama-3.2-1B"},
    ("post", "/v1/tokenize"): {"text": _TEXT},
    ("post", "/v1/generate"): {"text": _TEXT, "hooks": [_CAPTURE], "sampling": {"max_new_tokens": 8}},
    ("post", "/v1/run"): {"text": _TEXT, "hooks": [_CAPTURE]},
    ("post", "/v1/gradients"): {
        "text": _TEXT,
        "metric": _LOGIT,
        "hooks": [{"site": "resid_post.1", "capture": {"gradient": True}}],
    },
    ("post", "/v1/sweep"): {"text": _TEXT, "metric": _LOGIT, "plans": [{"hooks": [_SCALED]}]},
    ("post", "/v1/saes"): {"source": _SOURCE, "site": "resid_post.1", "name": "mine"},
    ("post", "/v1/saes/parts"): {"upload": "0" * 64, "n_bytes": 1_000_000},
    ("post", "/v1/variants"): {"source": "adapters/formal", "name": "formal"},
    ("post", "/v1/variants/parts"): {"upload": "0" * 64, "n_bytes": 1_000_000},
    ("post", "/v1/variants/files/{name}"): {"file": "variant.json"},
    ("post", "/v1/sessions"): {"name": "quieter", "hooks": [_SCALED]},
    ("put", "/v1/sessions/{id}"): {"hooks": [_CAPTURE]},
    ("post", "/v1/chat/completions"): {"messages": _MESSAGES, "max_tokens": 16},
    ("post", "/v1/completions"): {"prompt": _TEXT, "max_tokens": 8},
    ("post", "/tokenize"): {"prompt": _TEXT},
    ("post", "/detokenize"): {"tokens": [1, 2, 3]},
    ("post", "/v1/chat/completions/with_activations"): {
        "messages": _MESSAGES,
        "max_tokens": 8,
        "activation_hooks": [{"layer_name": "transformer.h.1", "component": "residual"}],
    },
    ("post", "/v1/activations/hooks"): {"hooks": [{"layer_name": "transformer.h.1", "component": "residual"}]},
    ("post", "/v1/activations/patch"): {
        "prompt": _TEXT,
        "interventions": [{"layer_name": "transformer.h.1", "type": "zero_ablation"}],
    },
}
"""By method and path, as the OpenAPI document has them."""
