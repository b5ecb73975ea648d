"""adapter_config.json of PEFT: what of it is read, what changes nothing, and what is refused, with the way out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ..errors import InvalidArgument
from .patterns import Patterns

__all__ = ["PeftConfig"]

_CONVERT = "or convert the tuned model: probewire variant convert --from-models BASE TUNED --energy .99"
_WHOLE = f"merge it with PEFT (merge_and_unload) and load that as a model, {_CONVERT}"
_REFUSED: Mapping[str, tuple[str, str]] = {
    "use_dora": (
        "scales whole rows of the base's weight",
        f"let PEFT convert it where it can (peft.save_as_lora), {_CONVERT}",
    ),
    "kasa_config": (
        "changes the base's own weights",
        f"let PEFT convert it where it can (peft.save_as_lora), {_CONVERT}",
    ),
    "modules_to_save": ("holds whole matrices", _WHOLE),
    "target_parameters": ("changes experts' parameters", _WHOLE),
    "trainable_token_indices": ("replaces rows of the embedding", _WHOLE),
    "layer_replication": ("repeats layers of the base", _WHOLE),
    "alora_invocation_tokens": (
        "acts from certain tokens on",
        "remove the field, load it, and use it with where=dict(phase='generated')",
    ),
    "ensure_weight_tying": ("ties adapters of embedding and head", "train it with the field left out"),
}
"""Field → what it does, and the way out; refused where it is set."""
_READ = frozenset(
    [
        "peft_type",
        "base_model_name_or_path",
        "revision",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "lora_bias",
        "init_lora_weights",
        "target_modules",
        "fan_in_fan_out",
    ]
)
_HARMLESS = frozenset(
    # the tensors say which modules; training is over; those that only speak of how it began are seen to by init_lora_weights
    [
        "task_type",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "lora_dropout",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "megatron_core",
        "megatron_config",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "runtime_config",
    ]
)
_LEAVES_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to begin that do not change the base's weights; the others belong to a changed base."""
MAX_RANK = 1 << 16


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What decides which numbers an adapter adds."""

    base: str
    """Folder or Hugging Face id, as it says."""
    r: int
    alpha: float
    ranks: Patterns
    alphas: Patterns
    rs: bool
    lora_bias: bool
    targets: tuple[str, ...]
    """Names of modules, or ends of them; empty: told by a regular expression."""

    @classmethod
    def read(cls, config: Mapping[str, Any], where: str) -> PeftConfig:
        """Raises InvalidArgument for kinds and fields that are not additive low rank, or not known here."""
        _refuse(config, where)
        try:
            ranks = {str(key): _rank(value) for key, value in _mapping(config.get("rank_pattern")).items()}
            alphas = {str(key): _number(value) for key, value in _mapping(config.get("alpha_pattern")).items()}
            return cls(
                base=str(config.get("base_model_name_or_path") or ""),
                r=_rank(config["r"]),
                alpha=_number(config["lora_alpha"]),
                ranks=Patterns(ranks, f"{where}: rank_pattern"),
                alphas=Patterns(alphas, f"{where}: alpha_pattern"),
                rs=bool(config.get("use_rslora")),
                lora_bias=bool(config.get("lora_bias")),
                targets=_targets(config.get("target_modules")),
            )
        except KeyError as error:
            raise InvalidArgument(f"{where} has no {error}; fetch it again") from None
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InvalidArgument):
                raise
            raise InvalidArgument(f"{where} has no usable r, lora_alpha or patterns: {error}") from None

    def rank(self, module: str) -> int:
        """Of the factors of a module."""
        return int(self.ranks.find(module, self.r))

    def scale(self, module: str) -> float:
        """What the product of the factors is multiplied with: alpha/r, with rsLoRA alpha/√r."""
        rank = self.rank(module)
        return self.alphas.find(module, self.alpha) / (math.sqrt(rank) if self.rs else rank)

    def require_target(self, module: str, where: str) -> None:
        """Raise InvalidArgument for a module that the config does not name."""
        if self.targets and not any(module == one or module.endswith(f".{one}") for one in self.targets):
            raise InvalidArgument(
                f"{where} holds factors of {module}, which target_modules of its config does not name"
            )


def _refuse(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InvalidArgument(
            f"{where} is of the kind {str(kind)[:40]!r}; LORA adds a low-rank product, others do not: let PEFT convert it where "
            f"it can (peft.save_as_lora), {_CONVERT}"
        )
    for name, (does, way_out) in _REFUSED.items():
        if config.get(name):
            raise InvalidArgument(f"{where} sets {name}, which {does} and adds no low-rank product: {way_out}")
    if config.get("bias", "none") != "none":
        raise InvalidArgument(
            f"{where} has bias {str(config['bias'])[:40]!r}: it changes the base's own biases; train it with bias='none', or {_WHOLE}"
        )
    begun = config.get("init_lora_weights")
    if not any(begun is one or (isinstance(begun, str) and begun == one) for one in _LEAVES_THE_BASE):
        raise InvalidArgument(
            f"{where} says init_lora_weights {str(begun)[:40]!r}: such an adapter belongs to a base whose weights it changed; save it "
            "with PEFT's conversion (save_pretrained(…, path_initial_model_for_weight_conversion=…)), which sets the field to true"
        )
    known = _READ | _HARMLESS | _REFUSED.keys()
    if unknown := sorted(str(name)[:60] for name, value in config.items() if name not in known and value):
        raise InvalidArgument(
            f"{where} sets {', '.join(unknown[:8])}, whose effect is not known here; remove what has none, or {_WHOLE}"
        )


def _mapping(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"{str(value)[:60]!r} is no object")
    return cast("dict[str, Any]", value)


def _rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise ValueError(f"{str(value)[:60]!r} is no rank")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:60]!r} is no finite number")
    return float(value)


def _targets(value: Any) -> tuple[str, ...]:
    if value is None or isinstance(value, str):
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in cast("list[Any]", value)):
        raise TypeError("target_modules is a list of names, or a regular expression")
    return tuple(cast("list[str]", value))
