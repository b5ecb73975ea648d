"""From a checkpoint folder to a model."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...protos.errors import Unsupported
from .attention import Attention
from .checkpoint import Checkpoint
from .config import Config
from .families import FAMILIES, Family
from .linear import Linear, Norm
from .mlp import ACTIVATIONS, Activation, Experts, GatedMlp, Mlp, PlainMlp
from .model import Layer, ReferenceModel
from .rope import Rope

__all__ = ["load"]

_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
"""What old checkpoints store though it follows from the config."""
_REFUSED = ("quantization_config", "quantization", "use_bidirectional_attention")


def load(folder: Path, dtype: Literal["float32", "float64"] = "float32") -> ReferenceModel:
    """Read a checkpoint. Raises Unsupported for a family, a setting or a weight that is not defined here."""
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if isinstance(raw.get("text_config"), dict):  # of a wrapper: what the whole says of tying its head counts
        raw = {**raw["text_config"], **{key: raw[key] for key in ("tie_word_embeddings",) if key in raw}}
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise Unsupported(f"model_type {model_type!r} is not defined here; allowed: {', '.join(FAMILIES)}")
    if present := [key for key in _REFUSED if raw.get(key)]:
        raise Unsupported(f"config.json sets {', '.join(present)}, which is not defined here")
    checkpoint, family = Checkpoint(folder, np.dtype(dtype)), FAMILIES[model_type]
    model = _Builder(checkpoint, Config(raw, family.keys), family).model(model_type)
    if unread := sorted(name for name in checkpoint.unread if not _BUFFERS.search(name)):
        raise Unsupported(f"the checkpoint has weights that {model_type} does not use here: {', '.join(unread[:8])}")
    return model


def _split(merged: Linear, first: int, n: int) -> list[Linear]:
    """The n maps that are stored side by side as one: the first of a given width, the rest alike."""
    rest = (merged.weight.shape[1] - first) // (n - 1)
    cuts = [first + i * rest for i in range(n - 1)]
    biases = [None] * n if merged.bias is None else np.split(merged.bias, cuts)
    return [Linear(w, b) for w, b in zip(np.split(merged.weight, cuts, axis=1), biases, strict=True)]


class _Builder:
    """Reads the parts of one model."""

    def __init__(self, checkpoint: Checkpoint, config: Config, family: Family) -> None:
        self.checkpoint, self.config, self.family = checkpoint, config, family
        probe = f"{family.prefix}{family.names['embedding']}.weight"
        self.prefix = family.prefix if probe in checkpoint else ""
        self.n_heads = int(config["num_attention_heads"])

    def model(self, model_type: str) -> ReferenceModel:
        config, family, read = self.config, self.family, self.checkpoint
        embedding = read.array(f"{self._name('embedding')}.weight")
        unembedding = Linear(embedding.T)
        if "lm_head.weight" in read:
            unembedding = read.linear("lm_head")  # what the file holds counts, whatever the config says of tying
        elif not config.get("tie_word_embeddings", family.tied):
            raise Unsupported("the checkpoint has no lm_head.weight, and config.json does not tie the embeddings")
        return ReferenceModel(
            architecture=model_type,
            embedding=embedding,
            layers=tuple(self._layer(i) for i in range(config["num_hidden_layers"])),
            final_norm=self._norm("final_norm"),
            unembedding=unembedding,
            positions=read.array(f"{self._name('positions')}.weight") if "positions" in family.names else None,
            embed_scale=math.sqrt(config["hidden_size"]) if family.gemma else 1.0,
            logit_cap=config.nullable("final_logit_softcapping") if family.gemma else None,
        )

    def _name(self, ours: str, layer: int | None = None) -> str:
        name = self.prefix + self.family.names[ours]
        return name if layer is None else name.format(layer)

    def _has(self, ours: str, layer: int) -> bool:
        return ours in self.family.names and f"{self._name(ours, layer)}.weight" in self.checkpoint

    def _norm(self, ours: str, layer: int | None = None) -> Norm:
        return self.checkpoint.norm(self._name(ours, layer), self.config["rms_norm_eps"], plus_one=self.family.gemma)

    def _norm_if_any(self, ours: str, layer: int) -> Norm | None:
        return self._norm(ours, layer) if self._has(ours, layer) else None

    def _linear(self, ours: str, layer: int) -> Linear:
        return self.checkpoint.linear(self._name(ours, layer), transposed=self.family.transposed)

    def _layer(self, i: int) -> Layer:
        return Layer(
            attn_norm=self._norm("attn_norm", i),
            attention=self._attention(i),
            attn_post_norm=self._norm_if_any("attn_post_norm", i),
            mlp_norm=self._norm("mlp_norm", i),
            mlp=self._mlp(i),
            mlp_post_norm=self._norm_if_any("mlp_post_norm", i),
        )

    def _attention(self, i: int) -> Attention:
        o = self._linear("o", i)
        width = o.weight.shape[0]
        d_head = width // self.n_heads
        if self._has("qkv", i):
            q, k, v = _split(self._linear("qkv", i), first=width, n=3)
        else:
            q, k, v = (self._linear(ours, i) for ours in ("q", "k", "v"))
        window = self._window(i)
        return Attention(
            q=q,
            k=k,
            v=v,
            o=o,
            d_head=d_head,
            scale=self._scale(i, d_head),
            q_norm=self._norm_if_any("q_norm", i),
            k_norm=self._norm_if_any("k_norm", i),
            rope=Rope.of(self._rotary(window is not None), d_head) if self.family.rotates(self.config, i) else None,
            cap=self.config.nullable("attn_logit_softcapping") if self.family.gemma else None,
            window=window,
            sinks=self.checkpoint.array(self._name("sinks", i)) if "sinks" in self.family.names else None,
        )

    def _scale(self, i: int, d_head: int) -> float:
        if self.family.gemma:
            return float(self.config["query_pre_attn_scalar"]) ** -0.5
        scale = d_head**-0.5 if self.config.get("scale_attn_weights", True) else 1.0
        return scale / (i + 1) if self.config.get("scale_attn_by_inverse_layer_idx", False) else scale

    def _window(self, i: int) -> int | None:
        config, family = self.config, self.family
        types = config.get("layer_types") if family.heeds_layer_types else None
        slides = types[i] == "sliding_attention" if types is not None else family.slides(config, i)
        if not slides or (family.window_is_opt_in and not config.get("use_sliding_window", False)):
            return None
        return config.get("sliding_window")

    def _rotary(self, windowed: bool) -> Config:
        """The layer's rotary settings, in either dialect: `rope_parameters`, or `rope_theta` with `rope_scaling`."""
        config, family = self.config, self.family
        settings: dict[str, Any] = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        if "full_attention" in settings:
            settings = dict(settings["sliding_attention" if windowed else "full_attention"])
        elif windowed and family.local_theta is not None:
            settings = {"rope_theta": config.get("rope_local_base_freq", family.local_theta)}
        settings.setdefault("rope_theta", config.get("rope_theta", family.theta))
        settings.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        for name in ("max_position_embeddings", "original_max_position_embeddings"):
            if config.get(name) is not None:
                settings.setdefault(name, config[name])
        return Config(settings)

    def _mlp(self, i: int) -> Mlp:
        if "experts" in self.family.names:
            return self._experts(i)
        down = self._linear("down", i)
        activation = self._activation()
        if self._has("gate_up", i):
            gate, up = _split(self._linear("gate_up", i), first=down.weight.shape[0], n=2)
            return GatedMlp(gate, up, down, activation)
        if self._has("up", i):
            return GatedMlp(self._linear("gate", i), self._linear("up", i), down, activation)
        return PlainMlp(self._linear("gate", i), down, activation)

    def _activation(self) -> Activation:
        name = self.config.get("hidden_act", self.family.activation)
        if name not in ACTIVATIONS:
            raise Unsupported(f"activation {name!r} is not defined here; allowed: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def _experts(self, i: int) -> Experts:
        """gpt-oss: [expert, in, out], gate and up interleaved."""
        name, read = self._name("experts", i), self.checkpoint.array
        both, both_bias = read(f"{name}.gate_up_proj"), read(f"{name}.gate_up_proj_bias")
        down, down_bias = read(f"{name}.down_proj"), read(f"{name}.down_proj_bias")
        return Experts(
            router=self._linear("router", i),
            experts=tuple(
                (
                    Linear(both[e, :, ::2], both_bias[e, ::2]),
                    Linear(both[e, :, 1::2], both_bias[e, 1::2]),
                    Linear(down[e], down_bias[e]),
                )
                for e in range(len(both))
            ),
            n_active=self.config["num_experts_per_tok"],
            alpha=self.config.get("swiglu_alpha", 1.702),
            limit=self.config.get("swiglu_limit", 7.0),
        )
