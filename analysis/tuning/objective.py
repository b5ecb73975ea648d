"""What a step minimises: the losses of a run, weighted, each divided by what it was at the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ..circuits.circuit import Circuit
from .activations import reading
from .adapters import Adapter
from .base import Base
from .circuit_mask import circuit_parts, outside_of
from .config import TuneConfig
from .examples import TokenExample, batch_of
from .losses import (
    breaker_weights,
    breakers_loss,
    coherence_loss,
    preserve_loss,
    rmu_loss,
    sparse_loss,
    task_loss,
)
from .pushes import Pushes
from .reft import Reft, chosen_positions
from .relocation import Relocation

__all__ = ["Objective"]

LATE = 10
"""The step at which a loss that was 0 at first is measured: the model equals its base then."""


@dataclass(slots=True, eq=False)
class Objective:
    """The loss of a batch. Random draws depend on seed and step alone, so that a run that goes on draws the same."""

    base: Base
    config: TuneConfig
    general: Sequence[TokenExample] = ()
    """General texts of `preserve`; what RMU and breakers retain."""
    adapter: Adapter | None = None
    reft: Reft | None = None
    pushes: Pushes | None = None
    outside: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict[str, NDArray[np.bool_]])
    """Site → the coordinates outside the circuit."""
    relocation: Relocation | None = None
    step: int = 0
    """Of the step under way, from 0."""
    scales: dict[str, float] = field(default_factory=dict[str, float])
    """Loss → what it is divided by, once known."""
    curves: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """A point a step: the losses as they are, and their weighted sum."""
    _direction: Any = None

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        """The weighted sum, a scalar with its gradient."""
        if self.config.method == "rmu":
            return self._noted({"rmu": self._rmu(batch)}, {"rmu": 1.0})
        if self.config.method == "breakers":
            return self._noted({"breakers": self._breakers(batch)}, {"breakers": 1.0})
        weights = self.config.weighted(circuit=bool(self.outside), general=bool(self.general))
        losses: dict[str, Any] = {}
        if "task" in weights or "coherence" in weights:
            losses |= self._on_task(batch, weights)
        if "preserve" in weights:
            losses["preserve"] = self._preserve()
        if "sparse" in weights:
            if self.adapter is None:
                raise InvalidArgument("the loss 'sparse' is of weights, and ReFT changes none; leave it out")
            losses["sparse"] = sparse_loss(self.adapter.factors())
        return self._noted(losses, weights)

    # ---- the mask ----

    def relocate(self, optimizer: Any = None) -> None:
        """At the steps that the config names: find the circuit again, and let its weights alone learn from now on."""
        every = self.config.relocalise_every
        if self.relocation is not None and every and self.step and self.step % every == 0:
            self.confine(self.relocation.look(self.step), optimizer)

    def confine(self, circuit: Circuit, optimizer: Any = None) -> None:
        """What may learn is the circuit's, and what is kept coherent is the rest."""
        assert self.adapter is not None, "method circuit"
        assert self.relocation is not None, "a circuit that may move"
        self.relocation.circuit = circuit
        self.outside = outside_of(self.base, circuit)
        parts = circuit_parts(self.base, circuit)
        for weight, confined in self.adapter.confined.items():
            part, size = parts.get(weight), len(confined.inside)
            confined.move(np.zeros(size, dtype=bool) if part is None else part.along(confined.side, size), optimizer)

    # ---- forwards ----

    def logits(self, batch: Mapping[str, Any]) -> Any:
        """[example, pos, vocabulary], with whatever is switched on."""
        if self.reft is not None:
            self.reft.where = chosen_positions(batch["prompt_length"], batch["ids"].shape[1], self.config.positions)
        if self.pushes is not None:
            self.pushes.mask = batch["mask"]
        return self.base.model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits

    def as_base(self) -> AbstractContextManager[Any]:
        """The model is its base within, and no gradient is kept."""
        stack = ExitStack()
        stack.enter_context(import_module("torch").no_grad())
        for part in (self.adapter, self.reft, self.pushes):
            if part is not None:
                stack.enter_context(part.off())
        return stack

    def drawn(self, n: int, what: int = 0) -> dict[str, Any]:
        """A batch of general texts, drawn with seed and step."""
        rng = np.random.default_rng([self.config.seed, self.step, what])
        chosen = rng.choice(len(self.general), size=min(n, len(self.general)), replace=False)
        return batch_of([self.general[int(index)] for index in chosen], self.config.device)

    # ---- losses ----

    def _on_task(self, batch: Mapping[str, Any], weights: Mapping[str, float]) -> dict[str, Any]:
        sites = list(self.outside) if "coherence" in weights else []
        with reading(self.base, sites) as tuned:
            logits = self.logits(batch)
            tuned = dict(tuned)
        found: dict[str, Any] = {}
        if "task" in weights:
            learned = batch["answer"] if self.config.loss_on == "answer" else batch["mask"].bool()
            loss = task_loss(logits, batch["ids"], learned)
            found["task"] = -loss if self.config.ascend else loss
        if sites:
            with self.as_base(), reading(self.base, sites) as base:
                self.logits(batch)
                base = dict(base)
            torch: Any = import_module("torch")
            kept = {site: torch.from_numpy(self.outside[site]).to(logits.device) for site in sites}
            found["coherence"] = coherence_loss([(tuned[s], base[s], kept[s]) for s in sites], batch["mask"])
        return found

    def _preserve(self) -> Any:
        batch = self.drawn(self.config.general_batch)
        # A push is part of the lesson, not of the model: what is kept is the model without it.
        with ExitStack() as stack:
            if self.pushes is not None:
                stack.enter_context(self.pushes.off())
            logits = self.logits(batch)
        with self.as_base():
            base = self.logits(batch)
        return preserve_loss(logits, base, batch["mask"])

    def _rmu(self, batch: Mapping[str, Any]) -> Any:
        [layer] = [self.base.layer(index) for index in self.config.layers]
        site, retain = f"resid_post.{layer}", self.drawn(self.config.general_batch)
        target = self._control_vector(batch, site)
        with reading(self.base, [site]) as found:
            self.logits(batch)
            forget = found[site]
            self.logits(retain)
            kept = found[site]
            with self.as_base():
                self.logits(retain)
                before = found[site]
        masks = (_without_first(batch["mask"]), _without_first(retain["mask"]))
        return rmu_loss(forget, target, masks[0], kept, before, masks[1], self.config.retain_weight)

    def _control_vector(self, batch: Mapping[str, Any], site: str) -> Any:
        """c·u: u a random direction of the seed, c in mean norms of the forget rows of the first batch."""
        if self._direction is None:
            torch: Any = import_module("torch")
            generator = torch.Generator().manual_seed(self.config.seed)
            u = torch.randn(self.base.d_model, generator=generator).to(self.config.device)
            self._direction = u / u.norm()
        if "rmu norm" not in self.scales:
            with self.as_base(), reading(self.base, [site]) as found:
                self.logits(batch)
            norms = found[site][_without_first(batch["mask"]).bool()].norm(dim=-1)
            self.scales["rmu norm"] = float(norms.mean())
        return self.config.forget_scale * self.scales["rmu norm"] * self._direction

    def _breakers(self, batch: Mapping[str, Any]) -> Any:
        sites = [f"resid_post.{self.base.layer(index)}" for index in self.config.layers]
        retain = self.drawn(self.config.general_batch)
        tuned: list[dict[str, Any]] = []
        before: list[dict[str, Any]] = []
        with reading(self.base, sites) as found:
            for given in (batch, retain):
                self.logits(given)
                tuned.append(dict(found))
                with self.as_base():
                    self.logits(given)
                    before.append(dict(found))
        pairs = [[(tuned[i][site], before[i][site]) for site in sites] for i in range(2)]
        masks = (_without_first(batch["mask"]), _without_first(retain["mask"]))
        weights = breaker_weights(self.step, self.config.steps, self.config.breaker_weight)
        return breakers_loss(pairs[0], masks[0], pairs[1], masks[1], weights)

    def _noted(self, losses: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
        total: Any = 0.0
        for name, loss in losses.items():
            total = total + weights[name] * loss / self._scale(name, float(loss.detach()))
        point = {name: float(loss.detach()) for name, loss in losses.items()}
        self.curves.append({"step": float(self.step + 1), "loss": float(total.detach()), **point})
        return total

    def _scale(self, name: str, value: float) -> float:
        if not self.config.normalise_losses or name in ("rmu", "breakers"):
            return 1.0
        if name not in self.scales and abs(value) > _TINY and (self.step == 0 or self.step + 1 >= LATE):
            self.scales[name] = abs(value)
        return self.scales.get(name, 1.0)


_TINY = 1e-9
"""A loss below it at the first step is 0 but for rounding."""


def _without_first(mask: Any) -> Any:
    """The first token's row is massive in most models, and would be all that a squared distance sees."""
    mask = mask.clone()
    mask[:, 0] = 0
    return mask
