"""The model that is tuned: loaded in float32 with transformers, its weights under our names, its sites as modules."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...protos.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported

__all__ = ["Base", "load_base", "require_extra"]

_LLAMA = {
    "self_attn.q_proj": "w_q",
    "self_attn.k_proj": "w_k",
    "self_attn.v_proj": "w_v",
    "self_attn.o_proj": "w_o",
    "mlp.gate_proj": "w_gate",
    "mlp.up_proj": "w_up",
    "mlp.down_proj": "w_down",
}
_GPT2 = {"attn.c_proj": "w_o", "mlp.c_fc": "w_up", "mlp.c_proj": "w_down"}
_LAYER = re.compile(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.+)")
_FUSED = ("attn.c_attn", "self_attn.qkv_proj", "mlp.gate_up_proj")
"""Modules of several weights: they are tuned whole, under their module's name."""


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A causal model and its tokenizer, float32, in evaluation mode, with no weight that learns."""

    folder: Path
    model: Any
    tokenizer: Any
    paths: Mapping[str, str]
    """Weight name → path of its module."""
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    layers: tuple[str, ...] = field(default=())
    """[layer]: path of the block whose output is resid_post."""

    def expand(self, patterns: Sequence[str]) -> tuple[str, ...]:
        """The weight names that patterns mean, in the model's order. Raises NotFound for one that means none."""
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.paths):
                kinds = dict.fromkeys(name.split(".")[0] + ".*" for name in self.paths if ":" not in name)
                raise NotFound(f"no weight of this model is {pattern!r}; there are {', '.join(kinds)}")
        return tuple(name for name in self.paths if any(fnmatchcase(name, pattern) for pattern in patterns))

    def module(self, weight: str) -> Any:
        """The linear module of a weight name, whatever wraps it by now."""
        return self.model.get_submodule(self.paths[weight])

    def layer(self, index: int) -> int:
        """A layer's number, negative ones counted from the end. Raises InvalidArgument outside the model."""
        if not -self.n_layers <= index < self.n_layers:
            raise InvalidArgument(f"there is no layer {index}; this model has 0 … {self.n_layers - 1}")
        return index % self.n_layers

    def block(self, layer: int) -> Any:
        """The block whose output is resid_post of the layer."""
        return self.model.get_submodule(self.layers[self.layer(layer)])


def load_base(folder: str | Path, *, device: str = "cpu") -> Base:
    """Load a checkpoint folder for tuning. Raises NotFound, Unsupported (no linear weights under known names), and

    FailedPrecondition where the folder is no checkpoint that transformers loads, or the extra is not installed.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise NotFound(f"{folder} is no checkpoint folder; `probewire pull` says where a model lies")
    require_extra()
    transformers: Any = import_module("transformers")
    torch: Any = import_module("torch")
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        with _quietly():
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="sdpa"
            )
    except (OSError, ValueError, KeyError) as error:
        raise FailedPrecondition(f"transformers cannot load {folder}: {error}") from error
    model.to(device).eval().requires_grad_(requires_grad=False)
    model.config.use_cache = False
    _without_dropout(torch, model)
    paths = _paths(torch, model)
    config = model.config.get_text_config()
    if not any(":" not in name for name in paths):
        raise Unsupported(
            f"a {config.model_type} has none of the weights {', '.join(_LLAMA.values())} under known names"
        )
    blocks = {int(m[1]): m[0][: m.start(2) - 1] for path in paths.values() if (m := _LAYER.match(path))}
    n_heads = int(config.num_attention_heads)
    return Base(
        folder,
        model,
        tokenizer,
        paths,
        n_layers=int(config.num_hidden_layers),
        n_heads=n_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        d_head=int(getattr(config, "head_dim", None) or config.hidden_size // n_heads),
        d_model=int(config.hidden_size),
        layers=tuple(blocks[index] for index in sorted(blocks)),
    )


def require_extra() -> None:
    """Raises FailedPrecondition that names the extra, where a library of it is not there."""
    for name in ("torch", "transformers", "peft", "accelerate"):
        if find_spec(name) is None:
            raise FailedPrecondition(f"tuning needs {name}: pip install 'probewire[tune]'")


@contextmanager
def _quietly() -> Generator[None]:
    """No bar of the library's own: `tune` has one."""
    logging: Any = import_module("transformers.utils.logging")
    shown = bool(logging.is_progress_bar_enabled())
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _without_dropout(torch: Any, model: Any) -> None:
    """What is compared with the base must not be noisy; few-step tuning has no use for it."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif getattr(module, "attention_dropout", 0.0):
            module.attention_dropout = 0.0


def _paths(torch: Any, model: Any) -> dict[str, str]:
    """Weight names in the order of the modules; fused modules and others below layers as `module:<path>`."""
    conv = import_module("transformers.pytorch_utils").Conv1D
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        match = _LAYER.fullmatch(path)
        if match is None or not isinstance(module, (torch.nn.Linear, conv)):
            continue
        name = _LLAMA.get(match[2]) or _GPT2.get(match[2])
        if name is not None:
            found[f"{name}.{match[1]}"] = path
        elif match[2] in _FUSED:
            found[f"module:{path}"] = path
    return found
