"""Loads a checkpoint folder as an mlx-lm model that computes what transformers computes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm import utils as mlx_lm_utils

from ...protos.errors import FailedPrecondition, InvalidArgument
from ..checkpoints.mlx_recipe import MLX_FAMILIES, mlx_recipe
from ..checkpoints.mlx_weights import mlx_weights
from ..checkpoints.quantised import Scheme, check_runnable
from ..checkpoints.quantised.at_load import AtLoad, check_plain
from ..checkpoints.refusals import in_our_words, not_causal
from ..checkpoints.shrunk import plain_json
from ..checkpoints.text_config import text_config
from ..checkpoints.tower import Tower
from ..model.weights import CheckpointWeights, has_own_head
from .experts import compute_each, stacked
from .mends import mend
from .ops import mlx_dtype
from .quantised import check_layouts, quantise, unpack_fp8

__all__ = ["Loaded", "choose_device", "library_classes", "load_model", "windows_of"]

_WINDOWS_OF_ITS_OWN = ("gemma3_text", "gpt_oss")
"""Families whose mlx-lm code needs to be told its window; the others ignore it, and our caches mask."""

_ELSEWHERE = {
    "qwen3_5_text": ("qwen3_5", "TextModel", "TextModelArgs"),
    "qwen3_5_moe_text": ("qwen3_5", "TextModel", "TextModelArgs"),
    "gemma4_unified_text": ("gemma4_text", "Model", "ModelArgs"),
}
"""Text model → where mlx-lm has it, inside a wrapper or under another name; the comparison at load shows that it is it."""

_STACKED = ("qwen3_moe", "qwen3_5_moe_text")
"""Whose experts files have in more ways than mlx-lm's code knows."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and what its checkpoint says of it."""

    model: Any
    config: Any
    """As transformers reads it."""
    dtype: mx.Dtype
    max_positions: int | None
    """Beyond them mlx-lm would part from transformers."""
    reason: str = ""
    """Why."""
    compared: bool = True
    """See `MlxRecipe.compared`."""
    at_load: AtLoad | None = None
    """What was quantised here."""


def choose_device(device: str) -> mx.Device:
    """`auto` is what MLX prefers. Raises FailedPrecondition for a device that is not here."""
    if device == "auto":
        return mx.default_device()
    if "," in device:
        raise InvalidArgument(
            f"device {device!r} names several; a model on MLX lies on one (auto, cpu or gpu): the torch backend places its "
            "layers over GPUs"
        )
    if device not in ("cpu", "gpu"):
        raise InvalidArgument(f"unknown device {device!r}; the mlx backend has auto, cpu and gpu, one of them")
    chosen = mx.Device(mx.cpu if device == "cpu" else mx.gpu)
    if not mx.is_available(chosen):
        raise FailedPrecondition("device gpu was asked for, but MLX finds none on this machine; use --device cpu")
    return chosen


def load_model(folder: Path, dtype: str, quantize: str = "") -> Loaded:
    """The model on MLX's default device. `dtype` is a wire name or "auto" (the checkpoint's own)."""
    weights = CheckpointWeights(folder)
    scheme, tower = weights.scheme, weights.tower
    check_runnable(scheme, folder, "mlx")
    check_plain(scheme, quantize)
    config: Any = text_config(folder).get_text_config()
    text = (folder / "config.json").read_text()
    written: dict[str, Any] = plain_json(text if tower is None else config.to_json_string(use_diff=False))
    if json.loads(text).get("quantize_activations"):
        raise FailedPrecondition(
            f"the checkpoint in {folder} rounds activations too (quantize_activations), which has no derivative; remove that "
            "entry from config.json to compute with its weights alone"
        )
    if written.get("tie_word_embeddings", getattr(config, "tie_word_embeddings", True)) and has_own_head(folder):
        written["tie_word_embeddings"] = False  # as transformers has it: what the file holds counts
    ignoring = config.model_type in MLX_FAMILIES and config.model_type not in _WINDOWS_OF_ITS_OWN
    recipe = mlx_recipe({**written, "sliding_window": None} if ignoring else written)
    model = _loaded(folder, config, recipe.config, weights)
    if scheme is not None:
        check_layouts(model, scheme)
    if dtype == "auto" and scheme is not None and scheme.method == "mlx":
        dtype = weights.float_dtype()  # of the scales: the config keeps that of the model they were made from
    chosen = mlx_dtype(dtype) if dtype != "auto" else _own_dtype(written, model)
    model.set_dtype(chosen)
    at_load = quantise(model, quantize) if quantize else None
    mend(model, recipe, config, chosen)
    compute_each(model, chosen)
    model.eval()
    mx.eval(model.parameters())
    return Loaded(model, config, chosen, recipe.max_positions, recipe.reason, recipe.compared, at_load)


def _loaded(folder: Path, config: Any, for_mlx: dict[str, Any], weights: CheckpointWeights) -> Any:
    fp8 = weights.scheme if weights.scheme is not None and weights.scheme.method == "fp8" else None
    if fp8 is not None:
        for_mlx = for_mlx | {"quantization_config": None}  # unpacked when it is read
    try:
        _check_known(for_mlx, config)
        classes = _classes_for(weights.tower, fp8)
        model, _ = mlx_lm_utils.load_model(folder, lazy=True, model_config=for_mlx, get_model_classes=classes)
    except SystemExit as error:  # so one of mlx-lm's files misses a package
        raise FailedPrecondition(
            f"mlx-lm's code for {config.model_type} needs a package that is not installed; use the torch backend"
        ) from error
    except ValueError as error:
        if (ours := in_our_words(folder, config.model_type, error)) is None:
            raise
        raise ours from error
    return model


def _check_known(for_mlx: dict[str, Any], config: Any) -> None:
    """Raise InvalidArgument for an architecture that mlx-lm has no code for."""
    try:
        library_classes(for_mlx)
    except ValueError:
        if getattr(config, "is_encoder_decoder", False):
            raise not_causal(config.model_type, encoder_decoder=True) from None
        raise InvalidArgument(
            f"mlx-lm {version('mlx-lm')} has no code for {config.model_type}; load it with the torch backend"
        ) from None


def library_classes(config: dict[str, Any]) -> tuple[Any, Any]:
    """mlx-lm's model class and the class of its arguments."""
    if config["model_type"] in _ELSEWHERE:
        place, model, args = _ELSEWHERE[config["model_type"]]
        module = importlib.import_module(f"mlx_lm.models.{place}")
        return getattr(module, model), getattr(module, args)
    utils: Any = mlx_lm_utils
    return utils._get_classes(config)


def _classes_for(tower: Tower | None, fp8: Scheme | None = None) -> Callable[[dict[str, Any]], tuple[type, type]]:
    """mlx-lm's classes, made to take the weights as transformers writes them, of a wrapper the text model's alone."""

    def classes(config: dict[str, Any]) -> tuple[type, type]:
        model_class, args_class = library_classes(config)

        def sanitize(self: Any, weights: dict[str, Any]) -> dict[str, Any]:
            if tower is not None:
                weights = {tower.names[name]: value for name, value in weights.items() if name in tower.names}
            weights = mlx_weights(config, unpack_fp8(fp8, weights) if fp8 else weights)
            if config["model_type"] in _STACKED:
                weights = stacked(weights, config["hidden_size"])
            return model_class.sanitize(self, weights) if hasattr(model_class, "sanitize") else weights

        return type(model_class.__name__, (model_class,), {"sanitize": sanitize}), args_class

    return classes


def _own_dtype(written: dict[str, Any], model: Any) -> mx.Dtype:
    """What the config says, or the dtype of the embedding: one dtype for all weights, as transformers has it."""
    name = str(written.get("dtype") or written.get("torch_dtype") or "").removeprefix("torch.")
    if name in ("float32", "float16", "bfloat16"):
        return mlx_dtype(name)
    for module in model.modules():
        if isinstance(module, (nn.Embedding, nn.QuantizedEmbedding)):
            weight: mx.array = module.weight
            return weight.dtype if mx.issubdtype(weight.dtype, mx.floating) else mx.bfloat16
    return mx.float32


def windows_of(config: Any, model: Any) -> list[int | None]:
    """The sliding window that transformers applies where each of the model's caches is; None for full attention."""
    n_caches = len(model.make_cache()) if hasattr(model, "make_cache") else config.num_hidden_layers
    if n_caches != config.num_hidden_layers:  # layers without one
        return [None] * n_caches
    n_layers, window = config.num_hidden_layers, getattr(config, "sliding_window", None)
    if not window or config.model_type == "llama" or getattr(config, "use_sliding_window", True) is False:
        return [None] * n_layers
    if config.model_type in ("mistral", "phi3"):
        return [window] * n_layers
    usual = "full_attention" if config.model_type in MLX_FAMILIES else "sliding_attention"
    kinds = getattr(config, "layer_types", None) or [usual] * n_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]
