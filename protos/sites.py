"""Site names: what can be read and edited in a forward pass, in the order the pass computes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from .errors import InvalidArgument

__all__ = ["ATTENTION_SITES", "AXES", "GLOBAL_SITES", "HEAD_SITES", "LAYER_SITES", "Site", "SitePattern"]

LAYER_SITES: dict[str, tuple[str, ...]] = {
    "resid_pre": ("pos", "d_model"),
    "attn_resid": ("pos", "d_model"),
    "attn_in": ("pos", "d_model"),
    "q": ("pos", "head", "d_head"),
    "k": ("pos", "kv_head", "d_head"),
    "v": ("pos", "kv_head", "d_head"),
    "attn_scores": ("head", "query", "key"),
    "attn_probs": ("head", "query", "key"),
    "z": ("pos", "head", "d_head"),
    "attn_out": ("pos", "d_model"),
    "resid_mid": ("pos", "d_model"),
    "mlp_resid": ("pos", "d_model"),
    "mlp_in": ("pos", "d_model"),
    "router_logits": ("pos", "expert"),
    "expert_weights": ("pos", "expert"),
    "mlp_gate": ("pos", "d_mlp"),
    "mlp_up": ("pos", "d_mlp"),
    "mlp_act": ("pos", "d_mlp"),
    "mlp_out": ("pos", "d_model"),
    "resid_post": ("pos", "d_model"),
}
"""Sites that every layer has (where the family offers them), in forward order, with their axes."""

GLOBAL_SITES: dict[str, tuple[str, ...]] = {
    "embed": ("pos", "d_model"),
    "final_norm": ("pos", "d_model"),
    "logits": ("pos", "vocab"),
}
AXES = {**LAYER_SITES, **GLOBAL_SITES}
HEAD_SITES = frozenset({"q", "k", "v", "z", "attn_scores", "attn_probs"})
"""Sites with a head axis, to which `heads` applies."""
ATTENTION_SITES = frozenset({"attn_scores", "attn_probs"})
"""Sites whose last axis is the absolute key position."""

MAX_SITE = 500
"""Letters of a site's name: it is remembered once parsed."""

_LAYER_ORDER = {name: index for index, name in enumerate(LAYER_SITES)}
_PATTERN = re.compile(r"(?P<name>[a-z_]+)(?:\.(?P<layer>-?\d+|\*|(?:-?\d+)?:(?:-?\d+)?))?")
_RAW = re.compile(r"module:(?P<path>[A-Za-z_][\w.]*):(?P<side>input|output)")
_TRANSFORMER_LENS = re.compile(r"blocks\.(?P<layer>-?\d+|\*)\.(?P<hook>.+)")
_TRANSFORMER_LENS_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_attn_in": "attn_resid",
    "hook_resid_mid": "resid_mid",
    "hook_mlp_in": "mlp_resid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_rot_q": "q",
    "attn.hook_rot_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_attn_scores": "attn_scores",
    "attn.hook_pattern": "attn_probs",
    "mlp.hook_pre": "mlp_gate",
    "mlp.hook_pre_linear": "mlp_up",
    "mlp.hook_post": "mlp_act",
}


@dataclass(frozen=True, slots=True, order=False)
class Site:
    """One concrete tensor: `resid_post.10`, `embed`, or a raw `module:path:input`."""

    name: str
    """A key of AXES, or "module" for a raw module tensor."""
    layer: int | None = None
    """0-based; None for global and raw sites."""
    path: str | None = None
    """Raw sites: the module path as the checkpoint's weights name it."""
    side: str | None = None
    """Raw sites: "input" or "output"."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of one request's own axes; raw sites are [pos, feature]."""
        return AXES.get(self.name, ("pos", "feature"))

    @property
    def order(self) -> tuple[int, int] | None:
        """Sorts by when the forward pass computes the site; None for raw sites."""
        if self.name == "module":
            return None
        if self.layer is None:
            return {"embed": (-1, 0), "final_norm": (1 << 30, 0), "logits": (1 << 30, 1)}[self.name]
        return (self.layer, _LAYER_ORDER[self.name])

    def __str__(self) -> str:
        if self.name == "module":
            return f"module:{self.path}:{self.side}"
        return self.name if self.layer is None else f"{self.name}.{self.layer}"

    @staticmethod
    def parse(text: str, n_layers: int | None = None) -> Site:
        """One site from its name. Raises InvalidArgument when `text` is malformed or stands for several.

        A layer counted from the end (`resid_post.-1`) needs `n_layers`, the model's.
        """
        pattern = _one(text)
        if n_layers is not None:
            return pattern.expand(n_layers)[0]
        if pattern.layer is not None and pattern.layer < 0:
            raise InvalidArgument(
                f"{text!r} counts layers from the end, and how many there are is not known here; name the layer itself"
            )
        return Site(pattern.name, pattern.layer, pattern.path, pattern.side)

    @staticmethod
    def canonical(text: str) -> str:
        """The name of one site as answers have it; a layer counted from the end stays so. Raises as `parse`."""
        return str(_one(text))


@dataclass(frozen=True, slots=True)
class SitePattern:
    """A parsed site name that may stand for several layers: `resid_post.*`, `resid_post.8:16`, `resid_post.-4:`."""

    name: str
    layers: tuple[int | None, int | None] | None = None
    """Half-open range of layers, None = open end, negative: from the last; None as a whole for global and raw sites."""
    layer: int | None = None
    """Set when exactly one layer was named; negative: from the last, −1."""
    path: str | None = None
    side: str | None = None

    @staticmethod
    def parse(text: str) -> SitePattern:
        """Parse a canonical name, a pattern, a raw module name, or a TransformerLens alias."""
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON can hold anything
            raise InvalidArgument(f"a site is a string such as 'resid_post.10', got {text!r}")
        if len(text) > MAX_SITE:
            raise InvalidArgument(f"a site has at most {MAX_SITE} characters, got {len(text):,}: {text[:60]!r}…")
        return _parse(text)

    @property
    def from_end(self) -> bool:
        """Whether it counts layers from the last."""
        return any(bound is not None and bound < 0 for bound in self.layers or ())

    def expand(self, n_layers: int) -> tuple[Site, ...]:
        """Every concrete site, in layer order. Raises InvalidArgument when a layer is out of range."""
        if self.layers is None:
            return (Site(self.name, None, self.path, self.side),)
        start, stop = self.layers
        start = 0 if start is None else start + n_layers if start < 0 else start
        stop = n_layers if stop is None else stop + n_layers if stop < 0 else stop
        if not 0 <= start < stop <= n_layers:
            raise InvalidArgument(
                f"site {self} names layers {start}:{stop}, but the model has layers 0:{n_layers} (0-based, half-open; negative: from "
                f"the last, -{n_layers} … -1)"
            )
        return tuple(Site(self.name, layer) for layer in range(start, stop))

    def __str__(self) -> str:
        if self.layers is None:
            return str(Site(self.name, None, self.path, self.side))
        if self.layer is not None:
            return f"{self.name}.{self.layer}"
        start, stop = self.layers
        if start is None and stop is None:
            return f"{self.name}.*"
        return f"{self.name}.{'' if start is None else start}:{'' if stop is None else stop}"


@lru_cache(maxsize=4096)
def _parse(text: str) -> SitePattern:
    if text.startswith("module:"):
        raw = _RAW.fullmatch(text)
        if raw is None:
            raise InvalidArgument(f"malformed raw site {text!r}; write module:<path>:input or module:<path>:output")
        return SitePattern("module", path=raw["path"], side=raw["side"])
    match = _PATTERN.fullmatch(_from_transformer_lens(text))
    if match is None or match["name"] not in AXES:
        raise InvalidArgument(
            f"unknown site {text!r}; allowed: {', '.join(GLOBAL_SITES)}, or one of {', '.join(LAYER_SITES)} "
            "followed by a layer such as .10, .-1 (the last), .* or .8:16, or module:<path>:input|output"
        )
    name, layer = match["name"], match["layer"]
    if name in GLOBAL_SITES:
        if layer is not None:
            raise InvalidArgument(f"site {text!r}: {name} belongs to the whole model; write {name!r} without a layer")
        return SitePattern(name)
    if layer is None:
        raise InvalidArgument(f"site {text!r} needs a layer: {name}.10, {name}.* or {name}.8:16")
    return _with_layers(name, layer)


def _with_layers(name: str, layer: str) -> SitePattern:
    if layer == "*":
        return SitePattern(name, (None, None))
    if ":" in layer:
        start, stop = (int(part) if part else None for part in layer.split(":"))
        return SitePattern(name, (start, stop))
    return SitePattern(name, (int(layer), int(layer) + 1 or None), int(layer))  # -1 is the last: open at its end


def _one(text: str) -> SitePattern:
    pattern = SitePattern.parse(text)
    if pattern.layers is not None and pattern.layer is None:
        raise InvalidArgument(f"{text!r} stands for several sites; name one layer, for example {pattern.name}.0")
    return pattern


def _from_transformer_lens(text: str) -> str:
    match = _TRANSFORMER_LENS.fullmatch(text)
    if match is None:
        return text
    if match["hook"] in ("attn.hook_q", "attn.hook_k"):
        name = match["hook"][-1]
        raise InvalidArgument(
            f"{text!r}: TransformerLens reads {name} before the rotary embedding there, probewire after it; "
            f"ask for {name}.{match['layer']} (blocks.{match['layer']}.attn.hook_rot_{name})"
        )
    name = _TRANSFORMER_LENS_HOOKS.get(match["hook"])
    return text if name is None else f"{name}.{match['layer']}"
