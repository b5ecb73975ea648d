"""What a PEFT adapter of the kind LoRA says, and what its factors add to a matrix.

As PEFT's documentation has it: weight + s·B·A, s = alpha/r, or alpha/√r with rsLoRA, r and alpha by patterns on the module's
name; DoRA gives each output's weights the length that was learned for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....protos.errors import InvalidArgument, Unsupported
from ....protos.tensors import Array
from ..json_file import json_object
from .kind import ADAPTER_CONFIG

__all__ = ["LoraConfig", "added", "with_lengths"]

_READ = {
    *("peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias"),
    *("rank_pattern", "alpha_pattern", "bias", "init_lora_weights"),
}
_OF_NO_EFFECT = {
    # the tensors say which modules; the base's own storage says which way round; training is over
    *(
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "fan_in_fan_out",
    ),
    *(
        "task_type",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "lora_dropout",
        "megatron_core",
        "megatron_config",
    ),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config"),
    "ensure_weight_tying",
}
_LEAVES_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin that do not change the base's own weights; the others are wrong beside the base as it was."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The fields of adapter_config.json that decide what the factors mean."""

    base: str
    """Folder or Hugging Face id."""
    revision: str | None
    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rs: bool
    dora: bool

    @classmethod
    def read(cls, folder: Path) -> LoraConfig:
        """Raises InvalidArgument and Unsupported, the latter for every field that is set and not known here."""
        file = folder / ADAPTER_CONFIG
        config = json_object(file)
        kind = str(config.get("peft_type"))
        if kind != "LORA":
            raise Unsupported(f"{file} is an adapter of the kind {kind}; LORA can be merged")
        unknown = [name for name, value in config.items() if name not in _READ | _OF_NO_EFFECT and value]
        if unknown:
            raise Unsupported(f"{file} sets {', '.join(unknown)}, whose effect on merged weights is not known here")
        begun = config.get("init_lora_weights")
        if begun not in _LEAVES_THE_BASE:
            raise Unsupported(
                f"{file} says init_lora_weights {begun!r}, which changes the base's own weights; convert the adapter to a plain "
                "LoRA with PEFT (save_pretrained(…, path_initial_model_for_weight_conversion=…))"
            )
        try:
            read = cls(
                base=str(config.get("base_model_name_or_path") or ""),
                revision=config.get("revision") or None,
                r=int(config["r"]),
                alpha=float(config["lora_alpha"]),
                rank_pattern={key: int(r) for key, r in (config.get("rank_pattern") or {}).items()},
                alpha_pattern={key: float(alpha) for key, alpha in (config.get("alpha_pattern") or {}).items()},
                rs=bool(config.get("use_rslora")),
                dora=bool(config.get("use_dora")),
            )
            if min((read.r, *read.rank_pattern.values())) < 1:
                raise ValueError("a rank below 1")
            for pattern in (*read.rank_pattern, *read.alpha_pattern):
                re.compile(pattern)
            return read
        except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
            raise InvalidArgument(
                f"{file} has no usable r, lora_alpha or patterns ({error}); fetch it again"
            ) from error

    def rank(self, module: str) -> int:
        """Of the factors of a module."""
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """What B·A is multiplied with."""
        rank, alpha = self.rank(module), float(_by_pattern(self.alpha_pattern, module, self.alpha))
        return alpha / math.sqrt(rank) if self.rs else alpha / rank


def added(weight: Array, a: Array, b: Array, scale: float) -> Array:
    """float32 [out, in]: weight [out, in] with scale·B·A, of b [out, r] and a [r, in]."""
    return weight.astype(np.float32) + np.float32(scale) * (b.astype(np.float32) @ a.astype(np.float32))


def with_lengths(weight: Array, lengths: Array) -> Array:
    """weight [out, in] with each output's row brought to its length (DoRA's magnitude)."""
    return weight * (lengths.astype(np.float32).reshape(-1, 1) / np.linalg.norm(weight, axis=1, keepdims=True))


def _by_pattern(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    """The value of the first pattern that a module's whole name, or its end, matches, as PEFT looks it up."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise
