"""NeuroScope's names for places in a model, as our sites; its hooks; and the hooks that callers have registered.

`layer_name` is `transformer.h.5` or `model.layers.5`, on any family, also with `.attn`, `.self_attn` or `.mlp` behind
it, or `transformer.wte` (`model.embed_tokens`). Choices where the dialect is vague: `layernorm` is the layer's first
norm; `moe` is the expert layer's whole output; `expert` is the routing weights, since its layers name no single expert.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ....protos.errors import InvalidArgument, ResourceExhausted
from ....protos.model import ModelInfo
from ....protos.spec import MAX_HOOKS, Capture, Hook
from ..http.fields import Fields, is_list

__all__ = ["COMPONENTS", "NeuroHook", "Place", "Registry", "hooks_of", "place_of", "plan_hooks"]

MAX_CALLERS = 1024

COMPONENTS: dict[str, tuple[str, str | None]] = {
    "residual": ("resid_post", "resid_pre"),
    "attention": ("attn_out", "attn_in"),
    "mlp": ("mlp_out", "mlp_in"),
    "embedding": ("embed", None),
    "layernorm": ("attn_in", "resid_pre"),
    "query": ("q", "attn_in"),
    "key": ("k", "attn_in"),
    "value": ("v", "attn_in"),
    "attention_scores": ("attn_scores", None),
    "attention_pattern": ("attn_probs", None),
    "moe": ("mlp_out", "mlp_in"),
    "expert": ("expert_weights", "mlp_in"),
}
"""Component → the site of its output, and of its input where it has one."""

_EXPERTS_ONLY = frozenset({"moe", "expert"})
_ATTENTION = frozenset({"attention", "query", "key", "value", "attention_scores", "attention_pattern"})
_BELOW = {"attn": _ATTENTION, "self_attn": _ATTENTION, "mlp": frozenset({"mlp", "moe", "expert"})}
"""What may stand behind the layer → the components it can mean."""

_LAYER = re.compile(r"(?:transformer\.h|model\.layers)\.(?P<layer>\d{1,6})(?:\.(?P<below>attn|self_attn|mlp))?")
_EMBEDDING = ("transformer.wte", "model.embed_tokens")


@dataclass(frozen=True, slots=True)
class Place:
    """One component of one layer."""

    layer_name: str
    component: str
    layer: int | None
    """None for the embedding."""

    def site(self, *, is_input: bool = False) -> str:
        """The site's name. Raises InvalidArgument where the component has no input of its own."""
        name = COMPONENTS[self.component][1 if is_input else 0]
        if name is None:
            raise InvalidArgument(
                f"{self.layer_name} {self.component}: its input is not a tensor of the model; set capture_input to "
                "false, or hook the component before it"
            )
        return name if self.layer is None else f"{name}.{self.layer}"

    def check(self, info: ModelInfo, *, is_input: bool = False) -> None:
        """Raise InvalidArgument, with the reason, when this model cannot offer the site in generation."""
        name = self.site(is_input=is_input).partition(".")[0]
        what = f"{self.layer_name} {self.component} ({self.site(is_input=is_input)})"
        if self.layer is not None and self.layer >= info.n_layers:
            raise InvalidArgument(f"{what}: {info.id} has layers 0 … {info.n_layers - 1}")
        if self.component in _EXPERTS_ONLY and not info.n_experts:
            raise InvalidArgument(f"{what}: {info.id} has no experts; use mlp")
        offered = info.site(name)
        if offered is None:
            names = ", ".join(site.name for site in info.sites)
            raise InvalidArgument(f"{what}: {info.id} does not offer {name}; it offers {names or 'no sites'}")
        if offered.layers is not None and self.layer not in offered.layers:
            raise InvalidArgument(f"{what}: {info.id} offers {name} only in layers {list(offered.layers)}")
        if not offered.generate:
            raise InvalidArgument(f"{what}: {info.id} does not offer {name} while generating; {offered.note}")


def place_of(layer_name: str, component: str) -> Place:
    """Raises InvalidArgument for names outside the dialect."""
    if component not in COMPONENTS:
        raise InvalidArgument(f"component {component!r}; allowed: {', '.join(COMPONENTS)}")
    if layer_name in _EMBEDDING or component == "embedding":
        if layer_name not in _EMBEDDING or component != "embedding":
            raise InvalidArgument(
                f"{layer_name} {component}: the embedding is layer_name {_EMBEDDING[0]} with component embedding"
            )
        return Place(layer_name, component, None)
    match = _LAYER.fullmatch(layer_name)
    if match is None:
        raise InvalidArgument(
            f"layer_name {layer_name!r}; allowed: transformer.h.N or model.layers.N (0-based), or {_EMBEDDING[0]}"
        )
    below = match["below"]
    if below is not None and component not in _BELOW[below]:
        raise InvalidArgument(f"{layer_name} {component}: {below} holds {', '.join(sorted(_BELOW[below]))}")
    return Place(layer_name, component, int(match["layer"]))


@dataclass(frozen=True, slots=True)
class NeuroHook:
    """One activation hook: what to read, and under which id it comes back."""

    hook_id: str
    place: Place
    capture_input: bool = False
    capture_output: bool = True

    @property
    def sides(self) -> tuple[bool, ...]:
        """is_input of each tensor it reads."""
        return (*((True,) if self.capture_input else ()), *((False,) if self.capture_output else ()))

    def check(self, info: ModelInfo) -> None:
        """Raise InvalidArgument when the model cannot serve it."""
        for is_input in self.sides:
            self.place.check(info, is_input=is_input)


def hooks_of(raw: object, name: str) -> tuple[NeuroHook, ...]:
    """A list of hooks out of a body. The same hook twice is one; two under one id are refused."""
    if raw is None:
        return ()
    if not is_list(raw):
        raise InvalidArgument(f"{name} must be a list of hooks")
    found: dict[str, NeuroHook] = {}
    for i, item in enumerate(raw):
        hook = _hook(Fields(item, f"{name}[{i}]"), f"{name}[{i}]")
        if found.setdefault(hook.hook_id, hook) != hook:
            raise InvalidArgument(
                f"{name}[{i}] has hook_id {hook.hook_id!r}, as another hook before it; ids must differ"
            )
    return tuple(found.values())


def _hook(fields: Fields, path: str) -> NeuroHook:
    place = place_of(fields.required("layer_name", str), fields.required("component", str))
    hook = NeuroHook(
        fields.take("hook_id", str, f"{place.layer_name}_{place.component}"),
        place,
        fields.take("capture_input", bool, False),
        fields.take("capture_output", bool, True),
    )
    fields.done()
    if not hook.sides:
        raise InvalidArgument(f"{path} captures neither input nor output; set one of capture_input, capture_output")
    for is_input in hook.sides:
        place.site(is_input=is_input)
    return hook


def plan_hooks(
    hooks: Iterable[NeuroHook], inputs: tuple[str, ...] | None = None
) -> tuple[list[Hook], list[tuple[NeuroHook, bool]]]:
    """Our hooks, and beside each whose it is and whether it reads an input. float32 holds every 16-bit value exactly."""
    sources = [(hook, is_input) for hook in hooks for is_input in hook.sides]
    return [
        Hook(hook.place.site(is_input=is_input), capture=Capture(dtype="float32"), inputs=inputs)
        for hook, is_input in sources
    ], sources


class Registry:
    """Hooks that callers registered, by caller and by model ("": whichever). Bounded, and lost with the process."""

    def __init__(self) -> None:
        self._hooks: dict[str, dict[str, dict[str, NeuroHook]]] = {}

    def add(self, caller: str, model: str, hooks: Iterable[NeuroHook]) -> None:
        """Add hooks; one under an id already there replaces it. Raises ResourceExhausted past a bound."""
        mine = self._hooks.get(caller)
        if mine is None and len(self._hooks) >= MAX_CALLERS:
            raise ResourceExhausted(
                f"{MAX_CALLERS} callers hold registered hooks, the most there may be; send activation_hooks with the "
                "call instead"
            )
        mine = {name: dict(found) for name, found in (mine or {}).items()}
        mine.setdefault(model, {}).update({hook.hook_id: hook for hook in hooks})
        if sum(len(found) for found in mine.values()) > MAX_HOOKS:
            raise ResourceExhausted(f"a caller may register {MAX_HOOKS} hooks; DELETE /v1/activations/hooks first")
        self._hooks[caller] = mine

    def of(self, caller: str, model: str) -> tuple[NeuroHook, ...]:
        """The caller's hooks for a model; those registered for it by name win."""
        mine: Mapping[str, dict[str, NeuroHook]] = self._hooks.get(caller, {})
        return tuple({**mine.get("", {}), **mine.get(model, {})}.values())

    def clear(self, caller: str, model: str) -> None:
        """Forget the caller's hooks for a model; "": all of them."""
        mine = self._hooks.get(caller, {})
        mine.pop(model, None)
        if not model or not mine:
            self._hooks.pop(caller, None)
