"""A circuit found again on the model in training: how far it has drifted, and, where that is asked for, the mask moved after it.

Circuits found once drift while the model learns, so that a static mask may confine learning to what no longer does the task.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ...protos.sites import Site
from ..circuits.circuit import Circuit
from ..circuits.joined import JoinedSpace
from ..circuits.space import Space
from .activations import reading
from .base import Base
from .circuit_mask import width_in
from .examples import TokenExample, batch_of

__all__ = ["Relocation", "faithfulness", "located", "unit_scores"]

Floats = NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Relocation:
    """The circuit in use, and what was found of it since."""

    base: Base
    circuit: Circuit
    """In use: its units are the mask."""
    examples: Sequence[TokenExample]
    """On whose answers it is found."""
    drift: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    """A point each time that it was looked for; a figure that is not defined is left out."""
    first: Circuit | None = None
    """Found in the same way before anything was learned: what later ones are compared with."""
    scores: Floats | None = None
    """[unit of the space] of `first`."""

    @property
    def possible(self) -> bool:
        """Whether it is one of neurons and heads."""
        try:
            _parts(self.base, self.circuit)
        except InvalidArgument:
            return False
        return True

    def begin(self) -> None:
        """Find it on the base. Raises InvalidArgument for a circuit that is not of neurons and heads, or has positions."""
        self.scores = unit_scores(self.base, self.circuit, self.examples)
        self.first = located(self.circuit, self.scores)

    def look(self, step: int) -> Circuit:
        """Find it on the model as it is, and note how far that is from what was found at first."""
        assert self.first is not None, "begin"
        assert self.scores is not None, "begin"
        scores = unit_scores(self.base, self.circuit, self.examples)
        found = located(self.circuit, scores)
        said = {
            "step": float(step),
            "distance": _distance(self.first, found),
            "from_mask": _distance(self.circuit, found),
            "spearman": _spearman(self.scores, scores),
            "faithfulness": faithfulness(self.base, self.circuit, self.examples),
        }
        self.drift.append({name: value for name, value in said.items() if np.isfinite(value)})
        return found


def unit_scores(base: Base, circuit: Circuit, examples: Sequence[TokenExample]) -> Floats:
    """[unit of the circuit's space]: mean over examples of |Σ a · ∂ log p(answer)/∂a| over positions but the first.

    As the model stands, adapters and all. Raises InvalidArgument for units other than neurons (mlp_act) and heads (z).
    """
    torch: Any = import_module("torch")
    parts = _parts(base, circuit)
    sites = [site for part in parts for site in part.sites]
    batch = batch_of(examples, str(next(base.model.parameters()).device))
    embed = base.model.get_input_embeddings().weight
    learned = embed.requires_grad
    embed.requires_grad_(requires_grad=True)  # so that there is a graph at every site
    try:
        with torch.enable_grad(), reading(base, sites) as found:
            value = _log_p(base, batch).sum()
            acts = [found[site] for site in sites]
            gradients = torch.autograd.grad(value, acts)
    finally:
        embed.requires_grad_(requires_grad=learned)
    mask = batch["mask"].clone()
    mask[:, 0] = 0
    scores: list[Floats] = []
    at = 0
    for part in parts:
        for _ in part.sites:
            product = (acts[at] * gradients[at] * mask[..., None]).sum(1).detach().double().cpu().numpy()
            scores.append(np.abs(product.reshape(len(product), part.width, -1).sum(-1)).mean(0))
            at += 1
    return np.concatenate(scores)


def located(circuit: Circuit, scores: Floats) -> Circuit:
    """The circuit of the largest scores, with as many neurons and as many heads as the given one has."""
    space, kept, start = circuit.space, list[int](), 0
    for part in _spaces(circuit):
        own = np.argsort(-scores[start : start + part.size], kind="stable")
        n = sum(unit.site in part.sites for unit in circuit.units)
        kept += (start + own[:n]).tolist()
        start += part.size
    order = sorted(kept, key=lambda index: -scores[index])
    return Circuit(
        space, tuple(space.unit_at(i) for i in order), tuple(float(scores[i]) for i in order), circuit.origin
    )


def faithfulness(base: Base, circuit: Circuit, examples: Sequence[TokenExample]) -> float:
    """(F(C) − F(∅)) / (F(M) − F(∅)): F the mean log p(answer), with the mean over the examples' tokens in place of every

    neuron and head of the space outside C. NaN where all of the space makes no difference.
    """
    torch: Any = import_module("torch")
    batch = batch_of(examples, str(next(base.model.parameters()).device))
    inside: dict[str, NDArray[np.bool_]] = {}
    start, taken = 0, circuit.mask.ravel()
    for part in _parts(base, circuit):
        for site, row in zip(part.sites, taken[start : start + part.size].reshape(len(part.sites), -1), strict=True):
            inside[site] = np.repeat(row, base.d_head if part.part == "head" else 1)
        start += part.size
    with torch.no_grad():
        with reading(base, list(inside)) as found:
            full = float(_log_p(base, batch).mean())
            means = {site: found[site][batch["mask"].bool()].mean(0) for site in inside}
        values: list[float] = []
        for outside in ({site: ~own for site, own in inside.items()}, {s: np.ones_like(o) for s, o in inside.items()}):
            with _replaced(base, means, outside):
                values.append(float(_log_p(base, batch).mean()))
    return float("nan") if full == values[1] else (values[0] - values[1]) / (full - values[1])


def _log_p(base: Base, batch: Mapping[str, Any]) -> Any:
    """[example]: log p of its answer, summed over tokens."""
    torch: Any = import_module("torch")
    logits = base.model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits[:, :-1]
    said = logits.log_softmax(-1).gather(-1, batch["ids"][:, 1:, None])[..., 0]
    return torch.where(batch["answer"][:, 1:], said, torch.zeros_like(said)).sum(-1)


def _spaces(circuit: Circuit) -> tuple[Space, ...]:
    return circuit.space.parts if isinstance(circuit.space, JoinedSpace) else (circuit.space,)


def _parts(base: Base, circuit: Circuit) -> tuple[Space, ...]:
    """The spaces of neurons and of heads that the circuit's is made of. Raises InvalidArgument for others."""
    if circuit.space.n_tokens is not None:
        raise InvalidArgument(
            "the circuit's units are told apart by position, and weights have none; find it over a space without"
        )
    for part in _spaces(circuit):
        for site in map(Site.parse, part.sites):
            if (site.name, part.part) not in (("mlp_act", "unit"), ("z", "head")):
                raise InvalidArgument(
                    f"the circuit's space has {site} ({part.part or 'whole'}), and only neurons (mlp_act) and heads (z) are found "
                    "again in training"
                )
            weight = f"{'w_down' if site.name == 'mlp_act' else 'w_o'}.{base.layer(site.layer or 0)}"
            width = width_in(base, weight) // (1 if site.name == "mlp_act" else base.d_head)
            if width != part.width:
                raise InvalidArgument(
                    f"the circuit's space has {part.width:,} at {site}, this model {width:,}; is it of another one?"
                )
    return _spaces(circuit)


@contextmanager
def _replaced(base: Base, means: Mapping[str, Any], outside: Mapping[str, NDArray[np.bool_]]) -> Generator[None]:
    torch: Any = import_module("torch")
    handles: list[Any] = []
    for name, mean in means.items():
        site = Site.parse(name)
        module = base.module(f"{'w_down' if site.name == 'mlp_act' else 'w_o'}.{site.layer}")
        where = torch.from_numpy(outside[name]).to(mean.device)

        def put(module: Any, inputs: Any, where: Any = where, mean: Any = mean) -> Any:
            del module
            return (torch.where(where, mean, inputs[0]), *inputs[1:])

        handles.append(module.register_forward_pre_hook(put))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _distance(one: Circuit, other: Circuit) -> float:
    """1 − Jaccard of their units."""
    a, b = set(one.units), set(other.units)
    return 1 - len(a & b) / len(a | b)


def _spearman(one: Floats, other: Floats) -> float:
    """Rank correlation; ties in the order of the units."""
    ranks = [np.argsort(np.argsort(values, kind="stable")).astype(np.float64) for values in (one, other)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if len(one) > 1 else float("nan")
