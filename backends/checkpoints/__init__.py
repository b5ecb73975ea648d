"""Checkpoints: a model's name in, a sound folder out that both backends load the same way."""

from .checkpoint import Checkpoint, Source, convert_model, default_cache_dir, plain_folder, resolve_model
from .default_model import DEFAULT_ID
from .folder import CheckpointFolder, inspect_folder
from .gemma_model import GEMMA_ID, licence_of
from .mlx_recipe import MLX_FAMILIES, MlxRecipe, mlx_config, mlx_recipe
from .mlx_weights import mlx_weights
from .model_hash import model_hash
from .progress import Progress, Stage

__all__ = [
    "DEFAULT_ID",
    "GEMMA_ID",
    "MLX_FAMILIES",
    "Checkpoint",
    "CheckpointFolder",
    "MlxRecipe",
    "Progress",
    "Source",
    "Stage",
    "convert_model",
    "default_cache_dir",
    "inspect_folder",
    "licence_of",
    "mlx_config",
    "mlx_recipe",
    "mlx_weights",
    "model_hash",
    "plain_folder",
    "resolve_model",
]
