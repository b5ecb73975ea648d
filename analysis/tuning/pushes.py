"""Neurons that are pushed while a model is tuned, where they are active or everywhere, and left alone afterwards.

A push reads a(p) as the model computes it, before any push of its own layer; no gradient goes through the mask. The
first position and padding are never pushed. A hook `Add` at mlp_act with `when` means the same on a server.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ...clients import Add, Condition, Constant, Hook, Replace, Scale, Span, Where
from ...protos.errors import InvalidArgument
from ...protos.numbers import finite
from ...protos.tensors import Tensor
from .base import Base

__all__ = ["Push", "Pushes", "push_hook", "pushed"]

Mode = Literal["add", "all", "scale", "clamp"]
MODES: tuple[Mode, ...] = ("add", "all", "scale", "clamp")


@dataclass(frozen=True, slots=True)
class Push:
    """One neuron: `add` adds amount where polarity·a > threshold, `all` adds it everywhere, `scale` multiplies by

    (1 + amount) there, `clamp` sets amount there. Amounts of add, all and clamp are in units of the neuron's value.
    """

    layer: int
    unit: int
    amount: float
    threshold: float = 0.0
    mode: Mode = "add"
    polarity: Literal[1, -1] = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.polarity not in (1, -1):
            raise InvalidArgument(
                f"a push has mode {' | '.join(MODES)} and polarity 1 or −1, got {self.mode!r}, {self.polarity}"
            )
        for name in ("amount", "threshold"):
            object.__setattr__(self, name, finite(getattr(self, name), f"push.{name}"))

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


def push_hook(push: Push) -> Hook:
    """The same edit for a request: every row but the first, where the neuron is active."""
    op: Literal["gt", "lt"] = "gt" if push.polarity > 0 else "lt"
    when = None if push.mode == "all" else Condition(push.polarity * push.threshold, op=op, unit=push.unit)
    units = (push.unit,)
    if push.mode == "scale":
        edit: Any = Scale(factor=1 + push.amount, units=units)
    elif push.mode == "clamp":
        edit = Replace(Constant(Tensor.of([push.amount])), units=units)
    else:
        edit = Add(Tensor.of([push.amount]), units=units)
    return Hook(f"mlp_act.{push.layer}", edit, where=Where(spans=(Span(1, None),), when=when))


@contextmanager
def pushed(base: Base, pushes: Sequence[Push]) -> Generator[Pushes]:
    """Whatever the model reads within is pushed, as it would be on a server with `push_hook`."""
    made = Pushes.on_model(base, pushes)

    def note(module: Any, args: Any, kwargs: Any) -> None:
        del module, args
        made.mask = kwargs["attention_mask"]

    made.handles.append(base.model.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield made
    finally:
        made.remove()


@dataclass(slots=True, eq=False)
class Pushes:
    """Pushes as hooks on a model under training. `share` is that of the last forward: tokens pushed of tokens there."""

    pushes: tuple[Push, ...]
    on: bool = True
    mask: Any = None
    """[example, pos] of the batch under way: 1 at real tokens."""
    pushed: dict[Push, Any] = field(default_factory=dict[Push, Any])
    """Push → the mask of the last forward, [example, pos] bool."""
    handles: list[Any] = field(default_factory=list[Any])

    @classmethod
    def on_model(cls, base: Base, pushes: Sequence[Push]) -> Pushes:
        """Hook the input of each layer's w_down. Raises InvalidArgument for neurons that are not there."""
        made = cls(tuple(pushes))
        if len({(base.layer(push.layer), push.unit) for push in made.pushes}) < len(made.pushes):
            raise InvalidArgument("two pushes are of one neuron; give one a neuron")
        for layer in sorted({base.layer(push.layer) for push in made.pushes}):
            module = base.module(f"w_down.{layer}")
            own = tuple(push for push in made.pushes if base.layer(push.layer) == layer)
            width = int(getattr(module, "in_features", 0) or module.weight.shape[0])
            if wrong := [push.unit for push in own if not 0 <= push.unit < width]:
                raise InvalidArgument(f"there is no neuron {wrong[0]} in layer {layer}; it has {width:,}")
            made.handles.append(module.register_forward_pre_hook(made._hook(own)))
        return made

    @contextmanager
    def off(self) -> Generator[None]:
        """Nothing is pushed within."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def remove(self) -> None:
        """Take the hooks off for good."""
        for handle in self.handles:
            handle.remove()

    def _hook(self, own: Sequence[Push]) -> Any:
        def before(module: Any, inputs: Any) -> Any:
            del module
            if not self.on or self.mask is None:
                return None
            a = inputs[0]
            real = self.mask.bool().clone()
            real[:, 0] = False
            changed = a.clone()
            for push in own:
                value = a[..., push.unit]
                where = real if push.mode == "all" else real & (push.polarity * value.detach() > push.threshold)
                self.pushed[push] = where
                if push.mode == "scale":
                    changed[..., push.unit] = value * (1 + push.amount * where.to(a.dtype))
                elif push.mode == "clamp":
                    changed[..., push.unit] = value.masked_fill(where, push.amount)
                else:
                    changed[..., push.unit] = value + push.amount * where.to(a.dtype)
            return (changed, *inputs[1:])

        return before
