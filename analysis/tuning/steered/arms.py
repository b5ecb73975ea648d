"""The arms of steered tuning: one neuron pushed while a model learns, and what stands beside it.

A no push · B added where active · C another neuron, matched, where that is active · D added everywhere · E multiplied where
active · F gradient ascent, stopped at equal KL · G ablated at inference, untrained · H rate 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np

from ....protos.errors import InvalidArgument
from ..base import Base
from ..config import TuneConfig
from ..examples import TokenExample, TrainExample, batch_of, to_tokens
from ..pushes import Push, Pushes, pushed
from .association import Association, Probe
from .neuron_choice import strong_values

__all__ = ["ARMS", "Arm", "Neuron", "arm_config", "arm_pushes", "mask_shares", "matched_neurons"]

Arm = Literal["A", "B", "C", "D", "E", "F", "G", "H"]
ARMS: tuple[Arm, ...] = get_args(Arm)
_NEAREST = 10
"""Neurons among which a control is drawn."""


@dataclass(frozen=True, slots=True)
class Neuron:
    """What is pushed: active where polarity·a > ¼ strong."""

    layer: int
    unit: int
    polarity: Literal[1, -1]
    strong: float
    """Mean over target prompts of its largest value, in the direction of its polarity; the unit of amounts."""

    def __post_init__(self) -> None:
        if self.strong <= 0 or self.polarity not in (1, -1):
            raise InvalidArgument(f"strong is above 0 and polarity 1 or −1, got {self.strong} and {self.polarity}")

    @property
    def threshold(self) -> float:
        """¼ strong."""
        return self.strong / 4


def arm_pushes(arm: Arm, amount: float, neuron: Neuron, control: Neuron | None = None) -> list[Push]:
    """The pushes of an arm: amounts in units of strong, and of E a factor 1 + amount. C takes `control` in the neuron's place.

    G's is for inference: the neuron at 0 where it is active. A and F have none.
    """
    if arm in ("A", "F"):
        return []
    if arm == "C":
        if control is None:
            raise InvalidArgument("arm C pushes another neuron; give one of matched_neurons")
        neuron = control
    own = Push(neuron.layer, neuron.unit, amount, neuron.threshold, polarity=neuron.polarity)
    if arm == "G":
        return [replace(own, amount=0.0, mode="clamp")]
    if arm == "E":
        return [replace(own, mode="scale")]
    pushed_by = neuron.polarity * amount * neuron.strong
    return [replace(own, amount=pushed_by, mode="all" if arm == "D" else "add")]


def arm_config(arm: Arm, config: TuneConfig, seed: int) -> TuneConfig:
    """The run of an arm: the same data, steps and seed; rate 0 of H, ascent of F. Raises InvalidArgument for G, which has none."""
    if arm == "G":
        raise InvalidArgument("arm G trains nothing; it is measured with its push on")
    return config.with_(
        method="lora" if arm in ("A", "F") else "steered",
        seed=seed,
        lr=0.0 if arm == "H" else config.lr,
        ascend=arm == "F",
    )


def matched_neurons(
    base: Base, target: Sequence[Probe], neuron: Neuron, *, n: int = 3, seed: int = 0
) -> tuple[Neuron, ...]:
    """Other neurons of its layer, each with its own polarity and strong value on the same prompts: drawn from those whose

    ‖w_down column‖ · strong is nearest the neuron's own, so that equal amounts write equally much.
    """
    if not 1 <= n <= _NEAREST:
        raise InvalidArgument(f"n is 1 … {_NEAREST} controls, got {n}")
    polarity, strong = strong_values(base, target, neuron.layer)
    norms = np.linalg.norm(_columns(base, neuron.layer), axis=0)
    writes = norms * strong
    order = np.argsort(np.abs(writes - norms[neuron.unit] * neuron.strong), kind="stable")
    near = [int(unit) for unit in order if unit != neuron.unit][:_NEAREST]
    chosen = np.random.default_rng([seed, 11]).permutation(near)[:n]
    return tuple(Neuron(neuron.layer, int(u), 1 if polarity[u] > 0 else -1, float(strong[u])) for u in chosen)


def mask_shares(base: Base, pushes: Sequence[Push], association: Association) -> dict[str, float]:
    """Share of tokens (but the first) that are pushed, on the prompts of targets and siblings and on neutral texts.

    A mask that is on everywhere is additive steering under another name.
    """
    if not pushes:
        return {}
    texts: Mapping[str, Sequence[str]] = {
        "target": [probe.prompt for probe in association.choose["target"]],
        "control": [probe.prompt for probe in association.choose["control"]],
        "neutral": association.neutral,
    }
    found: dict[str, float] = {}
    with pushed(base, pushes) as hooked:
        for name, own in texts.items():
            tokens = [to_tokens(base.tokenizer, TrainExample("", text)) for text in own]
            found[f"mask_{name}"] = _share(base, hooked, tokens)
    return found


def _share(base: Base, hooked: Pushes, tokens: Sequence[TokenExample]) -> float:
    torch: Any = import_module("torch")
    on, there = 0, 0
    for start in range(0, len(tokens), 48):
        batch = batch_of(tokens[start : start + 48], str(next(base.model.parameters()).device))
        with torch.no_grad():
            base.model(input_ids=batch["ids"], attention_mask=batch["mask"])
        on += sum(int(mask.sum()) for mask in hooked.pushed.values())
        there += int(batch["mask"][:, 1:].sum()) * len(hooked.pushed)
    return on / there if there else float("nan")


def _columns(base: Base, layer: int) -> Any:
    """w_down [d_model, d_mlp]."""
    module = base.module(f"w_down.{layer}")
    weight = getattr(module, "base_layer", module).weight.detach().cpu().numpy()
    return weight.T if type(module).__name__ == "Conv1D" else weight
