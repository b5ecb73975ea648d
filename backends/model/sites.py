"""Where a model keeps each site, and what it offers of them, on both backends.

A site is a module's input or output. Paths start at the layer; "" is the layer itself. Nothing here is written by hand
for an architecture: `anatomy` finds the table in the model's own forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...protos.model import LayerWidths, ModelInfo, SiteInfo
from ...protos.sites import ATTENTION_SITES, AXES, GLOBAL_SITES

__all__ = [
    "ATTENTION_TAPS",
    "NO_GRADIENTS",
    "Dims",
    "Family",
    "Tap",
    "Term",
    "dims_of",
    "site_infos",
    "without_gradients",
]


@dataclass(frozen=True, slots=True)
class Tap:
    """A module's input or output."""

    path: str
    side: Literal["input", "output", "attention", "product", "weights"]
    """attention: what the attention function gives, before the module goes on with it. product: what the one linear product
    inside the module gives. weights: the dense weights by which the outputs of a module's experts are added up."""
    in_place: bool = False
    """The tensor is also held by a residual branch, so an edit must write into it."""
    part: tuple[int, int] | None = None
    """(i, n): the i-th of n equal slices of the last axis (merged projections)."""
    linear: bool = False
    """A plain linear module computes it, so `low_rank` applies."""
    router: bool = False
    """Of a router's logits: they are what its module gives, or the first of what it gives."""
    heads: int = 0
    """Of z, in a layer that has another number of them than most."""
    scale: float = 1.0
    """The stream takes so many times the tensor, and the site is what it takes."""
    flat: bool = False
    """The tensor has its rows one behind the other: [batch · row, …]."""
    term: Term | None = None
    """The site is no tensor of a module's: it is this sum, and the tensor is what the model makes by adding it to a stream."""


@dataclass(frozen=True, slots=True)
class Term:
    """A sum that no module gives: the tensor is stream + scale · Σ cᵢ · partᵢ, to the bit and in this order."""

    stream: Tap
    parts: tuple[tuple[str, float], ...]
    """(path of the module whose output it is, c)."""
    scale: float = 1.0

    def below(self, base: str) -> Term:
        """The same with whole paths."""

        def whole(path: str) -> str:
            return f"{base}.{path}" if path else base

        stream = replace(self.stream, path=whole(self.stream.path))
        return Term(stream, tuple((whole(path), c) for path, c in self.parts), self.scale)


@dataclass(frozen=True, slots=True)
class Family:
    """How one model lays out its modules."""

    name: str
    taps: dict[str, Tap]
    """Per-layer sites that are modules' inputs or outputs."""
    body: dict[str, str] = field(default_factory=lambda: {"torch": "model", "mlx": "model"})
    """Backend → path of the transformer body there: this one's, and torch's, whose names raw modules have everywhere."""
    layers: str = "layers"
    norm: str = "norm"
    attention: str = "self_attn"
    """The attention module, below the layer."""
    heads: bool = True
    """Every layer calls our attention function, so that what is inside it are sites too."""
    where: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    """Layers of the sites that not every layer has."""
    own: dict[str, dict[int, Tap]] = field(default_factory=dict[str, dict[int, Tap]])
    """Of sites that are elsewhere in some layers: those layers' taps."""

    def tap(self, name: str, layer: int) -> Tap:
        """Where a layer's site is."""
        return self.own.get(name, {}).get(layer) or self.taps[name]

    def has(self, name: str, layer: int) -> bool:
        """Whether a layer has a site of this table."""
        return layer in self.where.get(name, (layer,))

    def layer_path(self, backend: str, layer: int) -> str:
        """Full module path of a layer."""
        return f"{self.body[backend]}.{self.layers}.{layer}"

    def norm_path(self, backend: str) -> str:
        """Full module path of the final norm."""
        return f"{self.body[backend]}.{self.norm}"


ATTENTION_TAPS = ("q", "k", "v", "attn_scores", "attn_probs")
"""Sites reached through the attention function; `z` is the output projection's input."""

ROW_EDITS = ("add", "scale", "replace", "project_out", "clamp", "noise", "affine")
NO_GRADIENTS = ("router_logits", "expert_weights")
"""Which experts are chosen is no smooth function, and the dense weights are made beside the forward."""
KEY_EDITS = ("add", "scale", "replace", "clamp")


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes that axes take in one model."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    vocab: int
    n_experts: int = 0
    d_v: int = 0
    """Of values and z, where they are not as wide as keys."""
    by_layer: tuple[Dims, ...] = ()
    """Each layer's own, where layers differ."""

    def widths(self, name: str, layer: int | None = None) -> tuple[int, ...]:
        """Sizes of a site's axes after its row axis, of most layers or of one; 0 for the key axis."""
        if layer is not None and self.by_layer:
            return self.by_layer[layer].widths(name)
        if name in ATTENTION_SITES:
            return (self.n_heads, 0)
        sizes = {
            "d_model": self.d_model,
            "head": self.n_heads,
            "kv_head": self.n_kv_heads,
            "d_head": self.d_v if self.d_v and name in ("v", "z") else self.d_head,
            "d_mlp": self.d_mlp,
            "vocab": self.vocab,
            "expert": self.n_experts,
        }
        return tuple(sizes[axis] for axis in AXES[name][1:])


def dims_of(config: Any) -> Dims:
    """Sizes from a config as transformers reads it; 0 for what an architecture does not have (heads, in a mamba)."""
    d_model, n_heads = config.hidden_size, _size(config, "num_attention_heads")
    return Dims(
        n_layers=config.num_hidden_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=_size(config, "num_key_value_heads") or n_heads,
        d_head=_size(config, "head_dim") or (d_model // n_heads if n_heads else 0),
        d_mlp=_size(config, "intermediate_size") or _size(config, "n_inner") or 4 * d_model,
        vocab=config.vocab_size,
        n_experts=_size(config, "num_local_experts"),
    )


def _size(config: Any, name: str) -> int:
    try:
        found = getattr(config, name)
    except (
        AttributeError,
        RuntimeError,
        ValueError,
    ):  # transformers raises any of these for what differs between layers
        return 0
    return found if isinstance(found, int) else 0


def site_infos(
    family: Family | None,
    dims: Dims,
    *,
    refused: dict[str, str] | None = None,
    run_only: dict[str, str] | None = None,
    head: bool = False,
) -> tuple[SiteInfo, ...]:
    """What a model offers. `refused` drops sites; `run_only` refuses them in generation; both give the reason.

    `head`: the output head is proven, so that of a model without a table the logits alone have a name.
    """
    refused, run_only = refused or {}, run_only or {}
    if family is None:
        own = SiteInfo("logits", AXES["logits"], dims.widths("logits"), edits=ROW_EDITS)
        return (own,) if head else ()
    layer_sites = [*family.taps, *(ATTENTION_TAPS if family.heads else ())]
    infos: list[SiteInfo] = []
    for name in AXES:
        if name in refused or (name not in GLOBAL_SITES and name not in layer_sites):
            continue
        infos.append(_site_info(name, family, dims, run_only.get(name, "")))
    return tuple(infos)


def without_gradients(info: ModelInfo, method: str) -> ModelInfo:
    """The same model, whose weights a library computes with in a way that was not shown to have a derivative."""
    note = f"gradients through weights quantised by {method} are not proven"
    sites = tuple(
        replace(site, gradients=False, note="; ".join(filter(None, (site.note, note)))) if site.gradients else site
        for site in info.sites
    )
    return replace(info, sites=sites, rules=())


def _site_info(name: str, family: Family, dims: Dims, run_only: str) -> SiteInfo:
    edits: tuple[str, ...] = KEY_EDITS if name in ATTENTION_SITES else ROW_EDITS
    tap = family.taps.get(name)
    layers = None if name in GLOBAL_SITES else family.where.get(name, tuple(range(dims.n_layers)))
    if tap is not None and all(family.tap(name, layer).linear for layer in layers or ()):
        edits = (*edits, "low_rank")
    if name not in (*ATTENTION_SITES, "logits", "router_logits"):
        edits = (*edits, "latents")
    if name == "expert_weights":
        edits = ()  # they follow from router_logits, which can be edited
    widths = _widths(name, dims, layers)
    return SiteInfo(
        name=name,
        axes=AXES[name],
        widths=widths[0].widths,
        layers=layers,
        generate=not run_only,
        gradients=name not in NO_GRADIENTS,
        edits=edits,
        note=run_only,
        layer_widths=widths if len(widths) > 1 else (),
    )


def _widths(name: str, dims: Dims, layers: tuple[int, ...] | None) -> tuple[LayerWidths, ...]:
    """Which sizes layers have, the most common first."""
    found: dict[tuple[int, ...], list[int]] = {}
    for layer in layers or ():
        found.setdefault(dims.widths(name, layer), []).append(layer)
    every = [LayerWidths(tuple(at), widths) for widths, at in found.items()]
    every.sort(key=lambda one: -len(one.layers))
    return tuple(every) or (LayerWidths((), dims.widths(name)),)
