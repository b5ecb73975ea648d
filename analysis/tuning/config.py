"""What a tuning run is told: method, weights, losses, steps. Plain data, checked on construction and kept in run.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from ...protos.errors import InvalidArgument

__all__ = ["DEFAULT_LOSSES", "LossName", "Method", "TuneConfig"]

Method = Literal["lora", "circuit", "reft", "steered", "rmu", "breakers"]
LossName = Literal["task", "preserve", "coherence", "sparse"]
Schedule = Literal["constant", "linear", "cosine"]
LossTokens = Literal["answer", "all"]

DEFAULT_LOSSES: Mapping[str, float] = {"task": 0.7, "preserve": 0.2, "coherence": 0.1}
"""Of a run with a circuit and general texts; what cannot be computed without them is left out."""
ALL_WEIGHTS = ("w_q.*", "w_k.*", "w_v.*", "w_o.*", "w_gate.*", "w_up.*", "w_down.*")
OWN_LOSS = ("rmu", "breakers")
"""Methods whose loss is their own: they take no `losses`."""
MAX_RANK = 512
"""A served variant's weight has no higher one."""


@dataclass(frozen=True, slots=True)
class TuneConfig:
    """One run. Raises InvalidArgument for values that fit nothing."""

    method: Method = "lora"
    steps: int = 60
    batch_size: int = 8
    lr: float = 2e-4
    schedule: Schedule = "constant"
    warm_up_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    seed: int = 0
    """Of the adapters' weights and of the order of the examples."""
    weights: tuple[str, ...] = ALL_WEIGHTS
    """Patterns of weight names that are tuned; with a circuit, those of them that it touches."""
    rank: int = 8
    alpha: float = 16.0
    """LoRA's: the product is scaled by alpha / rank."""
    full_rank: bool = False
    """Circuit: the rows or columns themselves are tuned, a rank a unit, in place of a product of `rank`."""
    relocalise_every: int = 0
    """Circuit: every so many steps it is found again on the model as it is, and the mask moved there; 0: never moved."""
    drift_examples: int = 8
    """Circuit: training examples on which it is found again at the end, to say how far it has drifted; 0: not said."""
    losses: Mapping[str, float] | None = None
    """Weight by name; None: DEFAULT_LOSSES, as far as they can be computed."""
    normalise_losses: bool = True
    """Each loss is divided by its value at step 1, or at step 10 where it was 0 then: raw scales differ."""
    ascend: bool = False
    """The task's loss is made larger: gradient ascent, the usual baseline of unlearning."""
    loss_on: LossTokens = "answer"
    """What is learned of a prompt with its answer: the answer's tokens, or all."""
    general_batch: int = 4
    """Of general (or retain) texts that a step reads."""
    layers: tuple[int, ...] = ()
    """ReFT: where it acts. RMU and breakers: whose residual stream is moved. Negative: from the end."""
    positions: tuple[int, int] = (4, 4)
    """ReFT: so many first and last tokens of the prompt."""
    low_rank_subspace: Literal["loreft", "direft"] = "loreft"
    forget_scale: float = 6.0
    """RMU: ‖c·u‖ in mean norms of the forget rows."""
    retain_weight: float = 100.0
    """RMU: of the retain loss. Breakers: their alpha has its own default, `breaker_weight`."""
    breaker_weight: float = 10.0
    checkpoints: int = 5
    """On the way."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("weights", "layers", "betas", "positions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.losses is not None:
            object.__setattr__(self, "losses", dict(self.losses))
        _one_of(self.method, get_args(Method), "method")
        _one_of(self.schedule, get_args(Schedule), "schedule")
        _one_of(self.loss_on, get_args(LossTokens), "loss_on")
        _one_of(self.low_rank_subspace, ("loreft", "direft"), "low_rank_subspace")
        for name in ("steps", "batch_size", "rank", "general_batch"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise InvalidArgument(f"{name} is a whole number of 1 or more, got {getattr(self, name)!r}")
        for name in ("seed", "warm_up_steps", "checkpoints", "relocalise_every", "drift_examples"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise InvalidArgument(f"{name} is a whole number of 0 or more, got {getattr(self, name)!r}")
        for name in ("lr", "alpha", "clip", "forget_scale", "retain_weight", "breaker_weight"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and name in ("alpha", "clip")):
                raise InvalidArgument(f"{name} is a finite number {'above' if value == 0 else 'of'} 0, got {value!r}")
        if self.rank > MAX_RANK:
            raise InvalidArgument(f"rank is at most {MAX_RANK}, got {self.rank}; a server takes no higher one")
        if not self.weights:
            raise InvalidArgument(f"name the weights to tune, such as {ALL_WEIGHTS[0]!r}, or leave `weights` out")
        if self.full_rank and self.method != "circuit":
            raise InvalidArgument(f"full_rank is of method 'circuit', got {self.method!r}")
        if self.relocalise_every and (self.method != "circuit" or self.full_rank or not self.drift_examples):
            raise InvalidArgument(
                "relocalise_every is of method 'circuit', needs drift_examples, and goes without full_rank, whose rank is the number "
                f"of units; got {self.method!r}, {self.drift_examples} examples, full_rank={self.full_rank}"
            )
        if self.method == "reft" and (len(self.positions) != 2 or min(self.positions) < 0 or not any(self.positions)):
            raise InvalidArgument(f"positions are (first, last) tokens of a prompt, got {self.positions}; give (4, 4)")
        self._check_losses()

    def _check_losses(self) -> None:
        if self.losses is None:
            return
        if self.method in OWN_LOSS:
            raise InvalidArgument(f"method {self.method!r} has its own loss; leave `losses` out")
        known = get_args(LossName)
        if wrong := [name for name in self.losses if name not in known]:
            raise InvalidArgument(f"there is no loss {wrong[0]!r}; there are {', '.join(known)}")
        if not all(math.isfinite(w) and w >= 0 for w in self.losses.values()) or not any(self.losses.values()):
            raise InvalidArgument(f"weights of losses are 0 or more, and one is above; got {dict(self.losses)}")

    def weighted(self, *, circuit: bool, general: bool) -> dict[str, float]:
        """The losses that count. Raises InvalidArgument for one that was asked for and lacks what it reads."""
        needs = {"coherence": circuit, "preserve": general}
        if self.losses is None:
            return {name: weight for name, weight in DEFAULT_LOSSES.items() if needs.get(name, True)}
        asked = {name: weight for name, weight in self.losses.items() if weight}
        for name in asked:
            if not needs.get(name, True):
                lacking = "a circuit" if name == "coherence" else "general texts"
                raise InvalidArgument(f"the loss {name!r} needs {lacking}; give some, or leave the loss out")
        return asked

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        found: dict[str, Any] = asdict(self)
        return found | {name: list(found[name]) for name in ("weights", "layers", "betas", "positions")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TuneConfig:
        """What `to_dict` gave. Raises InvalidArgument for fields that there are not."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InvalidArgument(f"no fields of a tuning: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        return cls(**data)

    def with_(self, **changes: Any) -> TuneConfig:
        """The same with other values."""
        return replace(self, **changes)


def _one_of(value: object, allowed: tuple[str, ...], what: str) -> None:
    if value not in allowed:
        raise InvalidArgument(f"{what} {value!r}; allowed: {', '.join(allowed)}")
