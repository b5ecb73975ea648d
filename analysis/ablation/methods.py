"""What is put in a part's place: zeros, a mean, another prompt's values, or noise on top.

The choice decides what a result means (zeros lie far from anything the model sees, a mean takes out what varies, another
prompt's values keep everything but the prompt), so every result carries its `kind`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ...clients import Input, Tensor, patch
from ...clients.requests.hooks import Options
from ...protos.edits import Constant, Inline, Zeros
from ...protos.errors import InvalidArgument
from ...protos.spec import Hook
from .parts import Part
from .reference import Reference

__all__ = ["Ablation", "MeanAblation", "NoiseAblation", "ResampleAblation", "ZeroAblation"]

Positions = int | Sequence[int] | None
"""Token positions that are ablated (negative: from the prompt's end); None: all."""
Inputs = Mapping[str, Input]
"""Prompts as token ids, by name."""


class Ablation(Protocol):
    """One way to take parts out."""

    @property
    def kind(self) -> str:
        """Named in every result."""
        ...

    def sources(self, inputs: Inputs) -> list[Input]:
        """`source_only` inputs that the hooks read, to be sent along."""
        ...

    def hooks(self, part: Part, inputs: Inputs, positions: Positions = None) -> list[Hook]:
        """The edits that take a part out of every input."""
        ...


@dataclass(frozen=True, slots=True)
class ZeroAblation:
    """Zeros."""

    @property
    def kind(self) -> str:
        return "zero"

    def sources(self, inputs: Inputs) -> list[Input]:
        return []

    def hooks(self, part: Part, inputs: Inputs, positions: Positions = None) -> list[Hook]:
        return [part.replace(Zeros(), **_at(positions))]


@dataclass(frozen=True, slots=True)
class MeanAblation:
    """The mean over a reference set: one row for all positions, or each position's own where the reference has those."""

    reference: Reference

    @property
    def kind(self) -> str:
        return "mean by position" if self.reference.positionwise else "mean"

    def sources(self, inputs: Inputs) -> list[Input]:
        return []

    def hooks(self, part: Part, inputs: Inputs, positions: Positions = None) -> list[Hook]:
        """Raises InvalidArgument where prompts are not as long as those of a reference by position."""
        mean = part.of(self.reference.mean(part.site))
        if not self.reference.positionwise:
            return [part.replace(Constant(Tensor.of(mean)), **_at(positions))]
        n_tokens = len(mean)
        other = sorted({len(item.token_ids or ()) for item in inputs.values()} - {n_tokens})
        if other:
            raise InvalidArgument(
                f"the reference holds means for each of {n_tokens} positions, but prompts have {other} tokens; measure "
                "it without positionwise, or ablate prompts of that length"
            )
        rows = np.ascontiguousarray(mean if positions is None else mean[_listed(positions)])
        return [part.replace(Inline(Tensor.of(rows)), **_at(positions))]


@dataclass(frozen=True, slots=True)
class ResampleAblation:
    """What the same positions hold in another prompt, drawn at random from those of equal length; read on the server."""

    pool: Inputs
    """Prompts as token ids (`FittedTask.prompts`, `tokenized`). Each input draws one, never itself."""
    seed: int = 0

    @property
    def kind(self) -> str:
        return "resample" if self.seed == 0 else f"resample, seed {self.seed}"

    def sources(self, inputs: Inputs) -> list[Input]:
        """Raises InvalidArgument for an input without another prompt of its length in the pool."""
        return [replace(self._draw(item), name=_source(name), source_only=True) for name, item in inputs.items()]

    def hooks(self, part: Part, inputs: Inputs, positions: Positions = None) -> list[Hook]:
        narrow: dict[str, Any] = {"heads": part.heads, "units": part.units, **_at(positions)}
        return [patch(part.site, from_input=_source(name), inputs=name, **narrow) for name in inputs]

    def _draw(self, item: Input) -> Input:
        ids = item.token_ids or ()
        others = [o for o in self.pool.values() if len(o.token_ids or ()) == len(ids) and o.token_ids != ids]
        if not others:
            raise InvalidArgument(
                f"input {item.name!r} has {len(ids)} tokens, and the pool of {len(self.pool)} prompts holds no other of "
                "that length; add some, or use the mean"
            )
        return random.Random(f"{self.seed} {ids}").choice(others)


@dataclass(frozen=True, slots=True)
class NoiseAblation:
    """Gaussian noise on top of the value; of `scale` times the part's own deviation, root mean square over its units.

    Without a reference, `scale` is the noise's deviation itself. Reproducible: drawn by seed, site and position.
    """

    scale: float
    reference: Reference | None = None
    seed: int = 0

    @property
    def kind(self) -> str:
        unit = "" if self.reference is None else "σ"
        return f"noise {self.scale:g}{unit}" + ("" if self.seed == 0 else f", seed {self.seed}")

    def sources(self, inputs: Inputs) -> list[Input]:
        return []

    def hooks(self, part: Part, inputs: Inputs, positions: Positions = None) -> list[Hook]:
        own = 1.0 if self.reference is None else _rms(part.of(self.reference.spread(part.site)))
        return [part.noise(self.scale * own, self.seed, **_at(positions))]


def _source(name: str) -> str:
    return f"{name}/resampled"


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.asarray(values, dtype=np.float64) ** 2)))


def _at(positions: Positions) -> Options:
    return {} if positions is None else {"positions": positions}


def _listed(positions: int | Sequence[int]) -> list[int]:
    return [positions] if isinstance(positions, int) else list(positions)
