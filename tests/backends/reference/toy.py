"""A model small enough to work out on paper, and one with every family's site."""

from __future__ import annotations

from typing import Any

import numpy as np

from probewire.backends.reference.attention import Attention
from probewire.backends.reference.linear import Linear, RmsNorm
from probewire.backends.reference.mlp import ACTIVATIONS, GatedMlp
from probewire.backends.reference.model import Layer, ReferenceModel
from probewire.backends.reference.run import ReferenceResult, run
from probewire.protos.spec import Capture, Hook, Plan

Array = np.ndarray[Any, Any]

A, B, C, D = 0, 1, 2, 3
"""Tokens; their embeddings are the corners (1, 1), (1, −1), (−1, 1) and (−1, −1)."""
CORNERS = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def averaging_model(n_layers: int = 2) -> ReferenceModel:
    """Each layer's attention writes `gain` × the mean of what came so far; its MLP writes nothing.

    Queries and keys are zero, so every visible key gets the same share; values and output are the identity, over two
    heads of one coordinate. A corner has rms 1, so layer 0's norms change nothing. Logits are the four dot products
    of the normed stream with the corners.
    """
    nothing, same = Linear(np.zeros((2, 2))), Linear(np.eye(2))
    norm = RmsNorm(np.ones(2), eps=1e-30)
    attention = Attention(q=nothing, k=nothing, v=same, o=same, d_head=1, scale=1.0)
    mlp = GatedMlp(same, same, nothing, ACTIVATIONS["relu"])
    layer = Layer(attn_norm=norm, attention=attention, mlp_norm=norm, mlp=mlp)
    return ReferenceModel(
        architecture="averaging",
        embedding=CORNERS,
        layers=(layer,) * n_layers,
        final_norm=norm,
        unembedding=Linear(CORNERS.T),
    )


def capture_after(hook: Hook, site: str, tokens: list[int], **request: Any) -> Array:
    """What `site` holds when `hook` has done its work, on the averaging model."""
    plan = Plan((hook, Hook(site, capture=Capture())))
    return run(averaging_model(), tokens, plan, **request).captures[1, site, ""].values


def captured(tokens: list[int], *hooks: Hook, **request: Any) -> ReferenceResult:
    """A run of the averaging model."""
    return run(averaging_model(), tokens, Plan(hooks), **request)
