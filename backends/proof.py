"""Whether each derived site is what it says, tried on the model itself: an edit there moves what it must, and nothing else.

Everything goes the way that requests go (bind, taps, executor), so what passes here is proven of the hooks, not of the table.
One layer of each kind is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..protos.edits import Add
from ..protos.errors import ProbewireError
from ..protos.model import Sampling
from ..protos.spec import Capture, Hook, Plan, Where
from ..protos.tensors import Array, Tensor
from .hooks.base import Backend
from .hooks.plan import bind
from .hooks.run_parts import RunParts
from .hooks.sequence import Sequence
from .model.anatomy.derive import Anatomy, Block

__all__ = ["TOLERANCE", "Proof", "prove"]

TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""Relative to the largest value of the tensor: sums made in another order, and once more rounded on their way here."""
N_TOKENS, CUT = 11, 4

_STREAM = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
_OF_ATTENTION, _OF_MLP = ("attn_out", "resid_mid", "resid_post"), ("mlp_out", "resid_post")
_OF_THE_OTHER = ("mlp_in", "mlp_out")
"""What an edit of attention's must leave as it was, where both parts read the same rows."""
_EFFECTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "attn_resid": (_OF_ATTENTION, ("resid_pre",)),
    "attn_in": (_OF_ATTENTION, ("resid_pre", "attn_resid")),
    "q": (_OF_ATTENTION, ("resid_pre", "attn_in", "k", "v")),
    "k": (_OF_ATTENTION, ("resid_pre", "attn_in", "q", "v")),
    "v": (_OF_ATTENTION, ("resid_pre", "attn_in", "q", "k")),
    "z": (_OF_ATTENTION, ("resid_pre", "attn_in", "q", "k", "v")),
    "mlp_resid": (_OF_MLP, ("resid_pre", "resid_mid", "attn_out")),
    "mlp_in": (_OF_MLP, ("resid_pre", "resid_mid", "attn_out", "mlp_resid")),
    "mlp_gate": (("mlp_act",), ("resid_mid", "attn_out", "mlp_in", "mlp_up")),
    "mlp_up": (("mlp_act",), ("resid_mid", "attn_out", "mlp_in", "mlp_gate")),
    "mlp_act": (_OF_MLP, ("resid_mid", "attn_out", "mlp_in", "mlp_gate", "mlp_up")),
}
"""Site → what an edit there must change (the first of these that there is), and what it must leave as it was."""

_LAYER_SITES = (*_STREAM, *_EFFECTS, "attn_scores", "attn_probs")
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


@dataclass(slots=True)
class Proof:
    """What was tried and what did not hold."""

    checks: int = 0
    layers: int = 0
    """Tried: one of each kind, and the last."""
    worst: float = 0.0
    """Largest relative error of those that held."""
    faults: dict[str, str] = field(default_factory=dict[str, str])
    """Site → why it is not offered."""
    parts: str = ""
    """Why a run cannot be made in parts, or empty."""

    def holds(self, site: str, error: float, tolerance: float, what: str) -> None:
        """Note one check."""
        self.checks += 1
        if error <= tolerance:
            self.worst = max(self.worst, error)
        else:
            self.faults.setdefault(site, f"{what}, and it is off by {error:.2g} (relative)")


def prove(backend: Backend, anatomy: Anatomy) -> Proof:
    """Try every derived site at one layer of each kind, and at the last."""
    proof, trial = Proof(), _Trial(backend)
    layers = _one_of_each(anatomy)
    proof.layers = len(layers)
    for layer in layers:
        try:
            _prove_layer(proof, trial, anatomy.blocks[layer], layer)
        except (LookupError, ProbewireError) as error:
            proof.faults |= dict.fromkeys(_LAYER_SITES, f"a run at layer {layer} failed: {error}")
    if backend.cuts_runs:
        proof.parts = trial.parts_fault()
        proof.checks += 1
    return proof


def _one_of_each(anatomy: Anatomy) -> list[int]:
    kinds: dict[Any, int] = {}
    for index, block in enumerate(anatomy.blocks):
        kinds.setdefault((block.kind, tuple(sorted(block.taps.items(), key=str)), block.window), index)
    return sorted({*kinds.values(), len(anatomy.blocks) - 1})


class _Trial:
    """Runs over the same few tokens, each with its own edits."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.info = backend, backend.info
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(1, min(self.info.vocab_size, 1000), size=N_TOKENS).tolist()
        self.tolerance = TOLERANCE[self.info.dtype]
        self._capture = Capture(dtype=None if self.info.dtype == "float64" else "float32")

    def offers(self, name: str, layer: int) -> bool:
        """Whether the layer has the site."""
        site = self.info.site(name)
        return site is not None and (site.layers is None or layer in site.layers)

    def read(self, names: Iterable[str], layer: int, edit: Hook | None = None) -> dict[str, Array]:
        """What sites of a layer hold, under an edit."""
        wanted = [name for name in names if self.offers(name, layer)]
        hooks = [Hook(f"{name}.{layer}", capture=self._capture) for name in wanted]
        after = layer + 1 < self.info.n_layers
        if after:
            hooks.append(Hook(f"resid_pre.{layer + 1}", capture=self._capture))
        sequence = self._sequence(Plan(tuple(([edit] if edit else []) + hooks)))
        [result] = self.backend.run([sequence])
        if result.error is not None:
            raise result.error
        found = _by_hook(result.rows)
        first = 1 if edit else 0
        read = {name: found[first + index] for index, name in enumerate(wanted)}
        if after:
            read["next"] = found[first + len(wanted)]
        return read

    def _sequence(self, plan: Plan) -> Sequence:
        n = len(self.tokens)
        bound = bind(plan, self.backend, mode="run", input_name="input", tokens=self.tokens, prompt_length=n, n_rows=n)
        self.backend.bind(bound)
        return Sequence("proof", list(self.tokens), n, bound, Sampling())

    def parts_fault(self) -> str:
        """Why a run in two parts is not what it is in one, or empty."""
        plan = Plan((Hook("final_norm", capture=self._capture),))
        [whole] = self.backend.run([self._sequence(plan)])
        sequence, parts = self._sequence(plan), RunParts()
        self.backend.run_part(sequence, parts, CUT)
        cut = self.backend.run_part(sequence, parts, N_TOKENS)
        error = _error(_by_hook(cut.rows)[0], _by_hook(whole.rows)[0])
        return "" if error <= self.tolerance else f"a run in parts differs from a whole one by {error:.2g} (relative)"


def _by_hook(rows: SequenceOf[Any]) -> dict[int, Array]:
    return {row.hook: row.values[0] for row in rows}


def _error(found: Array, expected: Array, scale: float = 0.0) -> float:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), scale, 1e-9))


def _prove_layer(proof: Proof, trial: _Trial, block: Block, layer: int) -> None:
    names = [*_STREAM, *_EFFECTS, "attn_probs"]
    plain = trial.read(names, layer)
    _sums(proof, trial, plain, plain, "the layer as it is")
    for name in _STREAM:
        if name in plain:
            found = trial.read(_STREAM, layer, _nudge(name, layer, plain[name]))
            _moved(proof, trial, name, plain, found)
            _sums(proof, trial, found, plain, f"with an edit at {name}", name)
    for name, (effects, stays) in _EFFECTS.items():
        changes = next((effect for effect in effects if effect in plain), "")
        if name in plain and changes:
            found = trial.read(
                dict.fromkeys([name, changes, *stays, *_STREAM, "mlp_in"]), layer, _nudge(name, layer, plain[name])
            )
            _moved(proof, trial, name, plain, found)
            _sums(proof, trial, found, plain, f"with an edit at {name}", name)
            for other in (*stays, *(_OF_THE_OTHER if block.kind == "parallel" and effects is _OF_ATTENTION else ())):
                if other in found:
                    error = _error(found[other], plain[other])
                    proof.holds(name, error, trial.tolerance, f"an edit at {name} must not change {other}")
            changed = _error(found[changes], plain[changes])
            proof.holds(
                name, 0.0 if changed > trial.tolerance / 10 else 1.0, 0.5, f"an edit at {name} must change {changes}"
            )
    if block.activation in _ACTIVATIONS and {"mlp_gate", "mlp_act"} <= set(plain):
        acted = _ACTIVATIONS[block.activation](plain["mlp_gate"].astype(np.float64)) * plain.get("mlp_up", 1.0)
        proof.holds(
            "mlp_gate", _error(acted, plain["mlp_act"]), trial.tolerance, "mlp_act must be act(mlp_gate) · mlp_up"
        )
    if {"attn_probs", "v", "z"} <= set(plain):
        mixed = np.einsum("hqk,khd->qhd", plain["attn_probs"], _each_head(plain["v"], plain["z"].shape[1]))
        proof.holds("attn_probs", _error(plain["z"], mixed), trial.tolerance, "z must be the probabilities times v")
        silent = trial.read(_STREAM, layer)
        error = _error(silent["resid_post"], plain["resid_post"])
        proof.holds("attn_probs", error, trial.tolerance, "asking for probabilities must change nothing")


def _nudge(name: str, layer: int, value: Array) -> Hook:
    """An edit that a site's rows cannot miss."""
    rng = np.random.default_rng(1)
    shape = value.shape[1:]
    vector = (0.5 * float(np.abs(value).mean() + 1e-3) * rng.standard_normal(shape)).astype(np.float32)
    # At every other position: the same vector at all keys would change no probability.
    return Hook(f"{name}.{layer}", edit=Add(Tensor.of(vector)), where=Where(positions=tuple(range(0, N_TOKENS, 2))))


def _moved(proof: Proof, trial: _Trial, name: str, plain: Mapping[str, Array], found: Mapping[str, Array]) -> None:
    """The capture behind the edit shows it."""
    changed = _error(found[name], plain[name])
    proof.holds(name, 0.0 if changed > trial.tolerance else 1.0, 0.5, f"an edit at {name} must be seen there")


def _sums(
    proof: Proof, trial: _Trial, found: Mapping[str, Array], plain: Mapping[str, Array], when: str, edited: str = ""
) -> None:
    """The stream is the sum of its parts, edited or not: resid_mid, resid_post, and the next layer's resid_pre."""
    scale = float(np.abs(plain["resid_post"]).max())
    sums: dict[str, tuple[str, ...]] = {}
    if {"resid_mid", "attn_out"} <= set(found) and edited != "resid_mid":
        sums["resid_mid"] = ("resid_pre", "attn_out")
    if {"resid_mid", "mlp_out"} <= set(found) and edited != "resid_post":
        sums["resid_post"] = ("resid_mid", "mlp_out")
    elif {"attn_out", "mlp_out"} <= set(found) and "resid_mid" not in found and edited != "resid_post":
        sums["resid_post"] = ("resid_pre", "attn_out", "mlp_out")
    if "next" in found:
        sums["next"] = ("resid_post",)
    for total, parts in sums.items():
        error = _error(found[total], np.sum([found[part] for part in parts], axis=0), scale)
        told = f"{when}, {'the next resid_pre' if total == 'next' else total} must be {' + '.join(parts)}"
        proof.holds(edited or parts[-1], error, trial.tolerance, told)


def _each_head(value: Array, n_heads: int) -> Array:
    """Each query head's own values: [key, head, d_head]."""
    return np.repeat(value, n_heads // value.shape[1], axis=1)
