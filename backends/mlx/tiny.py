"""A small checkpoint with random weights, of any architecture that mlx-lm has and transformers' names fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm import utils as mlx_lm_utils
from safetensors.numpy import save_file

from ..checkpoints.mlx_recipe import mlx_recipe
from ..checkpoints.mlx_weights import checkpoint_weights

__all__ = ["write_tiny"]


def write_tiny(folder: Path, config: dict[str, Any]) -> None:
    """Write a config that has every field, and weights drawn for it by the library's own class."""
    recipe = mlx_recipe(config)
    utils: Any = mlx_lm_utils
    model_class, args_class = utils._get_classes(recipe.config)
    made: Any = model_class(args_class.from_dict(recipe.config))
    parameters: list[Any] = list(tree_flatten(made.parameters()))
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0.0, 0.2, weight.shape).astype(np.float32) for name, weight in parameters}
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)  # some classes have one until they see a file without it
    save_file(checkpoint_weights(config, weights), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    mx.clear_cache()
