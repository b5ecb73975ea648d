"""The output that makes a fact's answer likely: found by gradient descent on one vector, through the server.

Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 3.1 and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Hook, Input, Kl, LogProb, Target, WeightedSum, capture, steer
from ...clients.requests.hooks import Hooks
from ...protos.errors import InvalidArgument, Unsupported
from ...protos.model import ModelInfo
from .fact import Fact
from .wording import PREFIXES, Worded, worded, wordings

__all__ = ["TargetValue", "require_linear_output", "target_value"]

Floats = NDArray[np.float64]
_KL, _BASE = "kl", "kl base"


@dataclass(frozen=True, slots=True, eq=False)
class TargetValue:
    """What an MLP shall give at the subject's last token, and where it reads it from."""

    fact: Fact
    layer: int
    key: Floats
    """k*, [d_mlp]: `mlp_act` at the subject's last token, mean over the wordings."""
    value: Floats
    """[d_model]: `mlp_out` there, mean over the wordings, as it is."""
    delta: Floats
    """[d_model]: v* − value, what has to be added."""
    losses: tuple[float, ...]
    """At each step: likelihood, KL and decay together."""
    target_log_prob: float
    """Mean over wordings of the answer's mean token log-probability with the delta added."""
    kl: float
    """KL(before ‖ after) of what follows "{subject} is a"."""
    n_wordings: int

    @property
    def wanted(self) -> Floats:
        """v*, [d_model]."""
        return self.value + self.delta


def target_value(
    client: Client,
    fact: Fact,
    layer: int,
    *,
    steps: int = 20,
    lr: float = 0.5,
    weight_decay: float = 0.5,
    kl: float = 0.0625,
    clamp: float = 4.0,
    stop: float = 0.05,
    prefixes: Sequence[str] = PREFIXES,
    hooks: Hooks = (),
    model: str = "",
) -> TargetValue:
    """Find δ at `mlp_out` of a layer, at the subject's last token, for which the new answer is likely.

    The loss, of Meng et al.: −mean over prefixes of the answer's mean token log-probability + kl·KL(before ‖ after) at
    "{subject} is a" + weight_decay·‖δ‖/‖v₀‖². Adam, each step projected to ‖δ‖ ≤ clamp·‖v₀‖. It ends where the first term is
    below `stop` (in small models the decay alone is above it), and the best of the points seen is kept. One request a step, on any backend. `hooks`: what is in place already.

    The key is the mean over the same wordings that the value is found with, used everywhere: a mean of keys on one side
    and a single one on the other makes edits that collapse (Gupta et al. 2024, "Rebuilding ROME").
    Raises Unsupported for models whose MLP ends in more than a matrix, InvalidArgument for a subject that no token ends.
    """
    info = client.describe(model)
    require_linear_output(info, layer)
    if steps < 1 or not lr > 0 or not clamp > 0:
        raise InvalidArgument(f"steps, lr and clamp must be above 0, got {steps}, {lr} and {clamp}")
    problem = _Problem(client, fact, layer, prefixes, kl, hooks, model)
    first = problem.measure(np.zeros(info.d_model), read=True)
    size = float(np.linalg.norm(first.value))
    delta, adam = np.zeros(info.d_model), _Adam(lr)
    best, best_delta, losses = first, delta, list[float]()
    now = first
    for step in range(steps):
        length = float(np.linalg.norm(delta))
        loss = now.loss + weight_decay * length / size**2
        losses.append(loss)
        if loss <= min(losses):
            best, best_delta = now, delta
        if -now.log_prob < stop or step == steps - 1:
            break
        decay = weight_decay * delta / (length * size**2) if length else 0.0
        delta = _within(delta - adam.step(now.gradient + decay), clamp * size)
        now = problem.measure(delta)
    return TargetValue(
        fact, layer, first.key, first.value, best_delta, tuple(losses), best.log_prob, best.kl, problem.n_wordings
    )


def require_linear_output(info: ModelInfo, layer: int) -> None:
    """Refuse layers whose MLP output is not one matrix of `mlp_act`: mixtures of experts, norms behind the MLP."""
    out, act = info.site("mlp_out"), info.site("mlp_act")
    if not 0 <= layer < info.n_layers:
        raise InvalidArgument(f"layer {layer}; allowed: 0 … {info.n_layers - 1}")
    offered = all(one is not None and (one.layers is None or layer in one.layers) for one in (out, act))
    if not offered or out is None or "low_rank" not in out.edits:
        raise Unsupported(
            f"facts cannot be written into the MLP of layer {layer} of {info.id} ({info.family}): its output is not one matrix "
            "times mlp_act (a norm behind the MLP as in gemma 2 and 3, or a mixture of experts); take a model without, or "
            "train: probewire tune"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    loss: float
    """Without the decay."""
    gradient: Floats
    log_prob: float
    kl: float
    key: Floats
    value: Floats


class _Problem:
    """The requests of one fact: its wordings, and the prompt whose continuation shall stay."""

    def __init__(
        self, client: Client, fact: Fact, layer: int, prefixes: Sequence[str], kl: float, hooks: Hooks, model: str
    ) -> None:
        self._client, self._layer, self._kl, self._hooks, self._model = client, layer, kl, hooks, model
        told = wordings(client, fact, prefixes, model=model)
        self.n_wordings = len(told)
        self._asked = {f"asked {i}": one for i, one in enumerate(told)}
        self._inputs = [Input(token_ids=one.ids, name=name) for name, one in self._asked.items()]
        self._targets = [Target(_likelihood(one), (name,)) for name, one in self._asked.items()]
        if kl:
            stays = _stays(client, fact, prefixes, model)
            self._asked[_KL] = stays
            self._inputs += [
                Input(token_ids=stays.ids, name=_KL),
                Input(token_ids=stays.ids, name=_BASE, source_only=True),
            ]
            self._targets.append(Target(Kl(_BASE), (_KL,)))
        self._places: dict[int, list[str]] = {}
        for name, one in self._asked.items():
            self._places.setdefault(one.position, []).append(name)

    def measure(self, delta: Floats, *, read: bool = False) -> _Measured:
        """Loss and gradient at δ; `read`: key and value too, which are those of the model where δ is 0."""
        found = self._client.gradients(
            self._inputs,
            self._targets,
            at=self._at("mlp_out"),
            capture=[*self._at("mlp_out"), *self._at("mlp_act")] if read else (),
            hooks=[*_listed(self._hooks), *self._added(delta)],
            model=self._model,
            progress=False,
        )
        metrics = found.metrics()
        gradient = np.zeros(len(delta))
        for name in self._asked:
            weight = self._kl if name == _KL else -1.0 / self.n_wordings
            gradient += weight * self._row(found.inputs[name].gradients, "mlp_out")
        log_prob = float(np.mean([metrics[name] for name in self._asked if name != _KL]))
        kl = metrics.get(_KL, 0.0)
        key = value = np.zeros(0)
        if read:
            asked = [found.inputs[name].captures for name in self._asked if name != _KL]
            key = np.mean([self._row(one, "mlp_act") for one in asked], axis=0)
            value = np.mean([self._row(one, "mlp_out") for one in asked], axis=0)
        return _Measured(self._kl * kl - log_prob, gradient, log_prob, kl, key, value)

    def _at(self, site: str) -> list[Hook]:
        return [capture(f"{site}.{self._layer}", positions=p, inputs=names) for p, names in self._places.items()]

    def _added(self, delta: Floats) -> list[Hook]:
        vector = delta.astype(np.float32)
        return [steer(f"mlp_out.{self._layer}", vector, positions=p, inputs=names) for p, names in self._places.items()]

    def _row(self, captures: Any, site: str) -> Floats:
        rows: Floats = np.asarray(captures[f"{site}.{self._layer}"], dtype=np.float64)
        return rows[0]


def _likelihood(one: Worded) -> LogProb | WeightedSum:
    """The answer's mean token log-probability."""
    terms = tuple(LogProb(token, row) for token, row in zip(one.answer, one.rows, strict=True))
    return terms[0] if len(terms) == 1 else WeightedSum(terms, (1 / len(terms),) * len(terms))


def _stays(client: Client, fact: Fact, prefixes: Sequence[str], model: str) -> Worded:
    """ "{subject} is a", behind a prefix where the subject would be the first token."""
    found = worded(client, f"{fact.subject} is a", len(fact.subject), "", model=model)
    for prefix in (*prefixes, *PREFIXES):
        if found.position:
            break
        found = worded(client, f"{prefix}{fact.subject} is a", len(prefix) + len(fact.subject), "", model=model)
    return found


class _Adam:
    """Kingma & Ba 2015, with their constants."""

    def __init__(self, lr: float) -> None:
        self._lr, self._n = lr, 0
        self._mean: Any = 0.0
        self._square: Any = 0.0

    def step(self, gradient: Floats) -> Floats:
        """What to subtract."""
        self._n += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean, square = self._mean / (1 - 0.9**self._n), self._square / (1 - 0.999**self._n)
        return self._lr * mean / (np.sqrt(square) + 1e-8)


def _within(vector: Floats, radius: float) -> Floats:
    length = float(np.linalg.norm(vector))
    return vector * (radius / length) if length > radius else vector


def _listed(hooks: Hooks) -> list[Any]:
    return list(hooks) if isinstance(hooks, (list, tuple)) else [hooks]
