"""Whether each site is what it says, tried on the model itself: an edit there moves what it must, and nothing else.

Everything goes the way that requests go (bind, taps, executor), so what passes here is proven of the hooks, not of the table.
One layer of each kind is tried.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..protos.edits import Add, Inline, Replace, Scale
from ..protos.metrics import Logit
from ..protos.model import Sampling
from ..protos.spec import Capture, Hook, Plan, Where
from ..protos.tensors import Array, Tensor
from .hooks.base import Backend
from .hooks.bound import Mode
from .hooks.metrics import bind_metric
from .hooks.plan import bind
from .hooks.run_parts import RunParts
from .hooks.sequence import Sequence
from .model.anatomy.block import Block
from .reference import MODEL_TYPES

__all__ = ["TOLERANCE", "Proof", "prove"]

TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""Relative: sums made in another order, and once more rounded on their way here."""
N_TOKENS, CUT = 11, 4
SHRUNK = 0.5
"""By which a row of the stream is scaled, where what follows must be seen to change."""
FORCED = 30.0
"""Logits of either sign between which a router's choice is sure."""
PATIENCE_S = 2.0
"""For a layer that is like one that was tried."""
LEAST_CHANGE = 0.1
"""Of an edit as large as the values themselves, at every other position, with what it is found there."""

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
    "router_logits": (("expert_weights", *_OF_MLP), ("resid_pre", "resid_mid", "attn_out", "mlp_in")),
    "mlp_gate": (("mlp_act",), ("resid_mid", "attn_out", "mlp_in", "mlp_up")),
    "mlp_up": (("mlp_act",), ("resid_mid", "attn_out", "mlp_in", "mlp_gate")),
    "mlp_act": (_OF_MLP, ("resid_mid", "attn_out", "mlp_in", "mlp_gate", "mlp_up")),
}
"""Site → what an edit there must change (the first of these that there is), and what it must leave as it was."""

_LAYER_SITES = (*_STREAM, *_EFFECTS, "expert_weights", "attn_scores", "attn_probs")
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
    """Tried: one of each kind, and the last where there was time."""
    a_layer_s: float = 0.0
    """Seconds that a trial took for each layer that it ran through."""
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


def prove(backend: Backend, blocks: SequenceOf[Block]) -> Proof:
    """Try every site at one layer of each kind, and at the last unless that would take long: its code is that of the others."""
    proof, trial = Proof(), _Trial(backend)
    kinds, last = _one_of_each(blocks), len(blocks) - 1
    for layer in sorted({*kinds, last}):
        if layer not in kinds and proof.layers and proof.a_layer_s * (last + 2) > PATIENCE_S:
            break
        proof.layers += 1
        start_s = time.perf_counter()
        try:
            _prove_layer(proof, trial, blocks[layer], layer)
        except Exception as error:  # noqa: BLE001 - what the libraries raise of a model costs its sites, and never the load
            proof.faults |= dict.fromkeys(_LAYER_SITES, f"a run at layer {layer} failed: {error}")
        proof.a_layer_s = (time.perf_counter() - start_s) / (layer + 2)  # runs end behind what they are asked for
    slow = proof.a_layer_s * (last + 2) > PATIENCE_S
    known = backend.info.architecture in MODEL_TYPES  # held to the reference by tests, in parts too
    if backend.cuts_runs and not (slow and known):
        try:
            proof.parts = trial.parts_fault() or trial.sharing_fault()
        except Exception as error:  # noqa: BLE001 - as above
            proof.parts = f"a run in parts, or sharing between plans, failed: {type(error).__name__}: {error}"
        proof.checks += 2
    return proof


def _one_of_each(blocks: SequenceOf[Block]) -> list[int]:
    kinds: dict[Any, int] = {}
    for index, block in enumerate(blocks):
        kinds.setdefault((block.kind, tuple(sorted(block.taps.items(), key=str)), block.window, _sizes(block)), index)
    return list(kinds.values())


def _sizes(block: Block) -> tuple[Any, ...]:
    call = block.call
    heads = () if call is None else (*call.q.shape, *call.k.shape, *call.v.shape)
    return (*heads, block.d_mlp, block.n_experts)


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

    def read(self, layer: int, asked: SequenceOf[tuple[Hook | None, Iterable[str]]]) -> list[dict[str, Array]]:
        """What sites of a layer hold, under each edit in turn (None: none). One forward, as a batch of requests is."""
        wanted = [[name for name in dict.fromkeys(names) if self.offers(name, layer)] for _, names in asked]
        after = [f"resid_pre.{layer + 1}"] if layer + 1 < self.info.n_layers else []
        sequences: list[Sequence] = []
        for index, ((edit, _), names) in enumerate(zip(asked, wanted, strict=True)):
            sites = [*(f"{name}.{layer}" for name in names), *after]
            hooks = [*([edit] if edit else []), *(Hook(site, capture=self._capture) for site in sites)]
            sequences.append(self._sequence(Plan(tuple(hooks)), f"proof{index}"))
        found: list[dict[str, Array]] = []
        for (edit, _), names, result in zip(asked, wanted, self.backend.run(sequences), strict=True):
            if result.error is not None:
                raise result.error
            values, first = _by_hook(result.rows), 1 if edit else 0
            found.append({name: values[first + index] for index, name in enumerate([*names, *(["next"] * len(after))])})
        return found

    def _sequence(self, plan: Plan, name: str = "proof", mode: Mode = "run") -> Sequence:
        n = len(self.tokens)
        bound = bind(plan, self.backend, mode=mode, input_name="input", tokens=self.tokens, prompt_length=n, n_rows=n)
        self.backend.bind(bound)
        return Sequence(name, list(self.tokens), n, bound, Sampling())

    def parts_fault(self) -> str:
        """Why a run in two parts is not what it is in one, or empty."""
        plan = Plan((Hook("final_norm", capture=self._capture),))
        [whole] = self.backend.run([self._sequence(plan)])
        sequence, parts = self._sequence(plan), RunParts()
        self.backend.run_part(sequence, parts, CUT)
        cut = self.backend.run_part(sequence, parts, N_TOKENS)
        one, other = _by_hook(cut.rows)[0].astype(np.float64), _by_hook(whole.rows)[0].astype(np.float64)
        error = float(
            np.abs(one - other).max() / np.abs(other).max()
        )  # other kernels: rounding is as large as what is largest
        return "" if error <= self.tolerance else f"a run in parts differs from a whole one by {error:.2g} (relative)"

    def sharing_fault(self) -> str:
        """Why a sweep's plan that begins at the last layer, or amid the text, does not measure what it does alone, or empty."""
        n, last = len(self.tokens), self.info.n_layers - 1
        lengths = {"n_tokens": n, "prompt_length": n}
        metrics = tuple(
            bind_metric(Logit(token=token), self.info, **lengths, input_lengths={}, what="proof") for token in range(4)
        )

        def variant(layer: int | None) -> Sequence:
            edit = Scale(SHRUNK)
            hooks = () if layer is None else (Hook(f"resid_pre.{layer}", edit=edit, where=Where(positions=(CUT,))),)
            sequence = self._sequence(Plan(hooks), f"proof{layer}", "sweep")
            return replace(sequence, metrics=metrics)

        prefix = self.backend.shared_prefix(variant(None))
        layers = sorted({last // 2, last})
        shared, alone = (self.backend.sweep([variant(layer) for layer in layers], one) for one in (prefix, None))
        for one, other in zip(shared, alone, strict=True):
            if failed := one.error or other.error:
                raise failed
            error = np.abs(np.subtract(one.measured, other.measured)).max() / np.abs(other.measured).max()
            if not error <= self.tolerance:
                return f"what a sweep's plans share changes what they measure by {error:.2g} (relative)"
        return ""


def _by_hook(rows: SequenceOf[Any]) -> dict[int, Array]:
    return {row.hook: row.values[0] for row in rows}


def _error(found: Array, expected: Array, size: Array | None = None) -> float:
    """Largest error of a coordinate, relative to its own size (or `size`, that of what it is summed from) and what is usual.

    Not to the largest of all: in a real model one coordinate may be a thousand times the rest, and would hide them.
    """
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    size = np.abs(expected) if size is None else size
    return float((np.abs(found - expected) / (size + np.abs(expected).mean() + 1e-30)).max())


def _change(found: Array, plain: Array) -> float:
    """How much values differ on the whole."""
    return float(np.abs(found.astype(np.float64) - plain).mean() / (np.abs(plain).mean() + 1e-30))


def _prove_layer(proof: Proof, trial: _Trial, block: Block, layer: int) -> None:
    plain, silent = trial.read(layer, [(None, [*_STREAM, *_EFFECTS, "expert_weights", "attn_probs"]), (None, _STREAM)])
    _formulas(proof, trial, block, plain, silent)
    if "router_logits" in plain:
        _mixture(proof, trial, layer, plain)
    _sums(proof, trial, block, plain, "the layer as it is")
    tried = [name for name in _STREAM if name in plain]
    effects = {name: _effect(name, block, plain) for name in _EFFECTS if name in plain}
    asked = [(_nudge(name, layer, plain[name]), [*_STREAM]) for name in tried]
    asked += [(_nudge(name, layer, plain[name]), [name, *effects[name], *_STREAM]) for name in effects]
    # Beside them once more without an edit: rows that share a forward share their rounding.
    untouched = [one for one in plain if one not in ("next", "attn_probs")]
    *read, plain = trial.read(layer, [*asked, (None, untouched)])
    for name, found in zip([*tried, *effects], read, strict=True):
        seen = _change(found[name], plain[name])
        proof.holds(name, 0.0 if seen > LEAST_CHANGE else 1.0, 0.5, f"an edit at {name} must be seen there")
        _sums(proof, trial, block, found, f"with an edit at {name}", name)
        if name in effects:
            changes, *stays = effects[name]
            for other in stays:
                error = _error(found[other], plain[other])
                proof.holds(name, error, trial.tolerance, f"an edit at {name} must not change {other}")
            moved = _error(found[changes], plain[changes]) > trial.tolerance
            proof.holds(name, 0.0 if moved else 1.0, 0.5, f"an edit at {name} must change {changes}")


def _effect(name: str, block: Block, plain: Mapping[str, Array]) -> list[str]:
    """What an edit at a site changes, then what it leaves as it was, of what the layer has."""
    changes, stays = _EFFECTS[name]
    if block.kind == "parallel" and changes is _OF_ATTENTION:
        stays = (*stays, *_OF_THE_OTHER)
    return [next(one for one in changes if one in plain), *(one for one in stays if one in plain)]


def _formulas(
    proof: Proof, trial: _Trial, block: Block, plain: Mapping[str, Array], silent: Mapping[str, Array]
) -> None:
    """mlp_act of its branches, and z of probabilities and values, for which asking changes nothing."""
    if block.activation in _ACTIVATIONS and {"mlp_gate", "mlp_act"} <= set(plain):
        acted = _ACTIVATIONS[block.activation](plain["mlp_gate"].astype(np.float64)) * plain.get("mlp_up", 1.0)
        proof.holds(
            "mlp_gate", _error(acted, plain["mlp_act"]), trial.tolerance, "mlp_act must be act(mlp_gate) · mlp_up"
        )
    if {"attn_probs", "v", "z"} <= set(plain):
        mixed = np.einsum("hqk,khd->qhd", plain["attn_probs"], _each_head(plain["v"], plain["z"].shape[1]))
        proof.holds("attn_probs", _error(plain["z"], mixed), trial.tolerance, "z must be the probabilities times v")
        error = _error(silent["resid_post"], plain["resid_post"])
        for name in ("attn_probs", "attn_scores"):
            proof.holds(name, error, trial.tolerance, "asking for probabilities must change nothing")


def _mixture(proof: Proof, trial: _Trial, layer: int, plain: Mapping[str, Array]) -> None:
    """With logits that leave each token one expert, another each: it has the largest weight, and the block goes on with it."""
    n, n_experts = (int(size) for size in plain["router_logits"].shape)
    own = np.arange(n, dtype=np.int64) % n_experts
    logits = np.full((n, n_experts), -FORCED, np.float32)
    logits[np.arange(n), own] = FORCED
    forced = Hook(f"router_logits.{layer}", edit=Replace(Inline(Tensor.of(logits))))
    [found] = trial.read(layer, [(forced, ["expert_weights", "mlp_out", "resid_post"])])
    if "expert_weights" in found:
        wrong = float((np.asarray(found["expert_weights"].argmax(-1), dtype=np.int64) != own).mean())
        proof.holds("expert_weights", wrong, 0.0, "the expert that the logits leave must have the largest weight")
    moved = next(found[name] for name in ("mlp_out", "resid_post") if name in found)
    before = next(plain[name] for name in ("mlp_out", "resid_post") if name in plain)
    seen = 0.0 if _error(moved, before) > trial.tolerance else 1.0
    proof.holds("router_logits", seen, 0.5, "an edit at router_logits must change what the experts give")


def _nudge(name: str, layer: int, value: Array) -> Hook:
    """An edit that a site's rows cannot miss."""
    rng = np.random.default_rng(1)
    vector = (float(np.abs(value).mean() + 1e-3) * rng.standard_normal(value.shape[1:])).astype(np.float32)
    # At every other position: the same vector at all keys would change no probability.
    return Hook(f"{name}.{layer}", edit=Add(Tensor.of(vector)), where=Where(positions=tuple(range(0, N_TOKENS, 2))))


def _sums(proof: Proof, trial: _Trial, block: Block, found: Mapping[str, Array], when: str, edited: str = "") -> None:
    """The stream is the sum of its parts, edited or not: resid_mid, resid_post, and the next layer's resid_pre."""
    sums: dict[str, tuple[str, ...]] = {}
    if {"resid_mid", "attn_out"} <= set(found) and edited != "resid_mid":
        sums["resid_mid"] = ("resid_pre", "attn_out")
    if {"resid_mid", "mlp_out"} <= set(found) and edited != "resid_post":
        sums["resid_post"] = ("resid_mid", "mlp_out")
    elif {"attn_out", "mlp_out"} <= set(found) and "resid_mid" not in found and edited != "resid_post":
        sums["resid_post"] = ("resid_pre", "attn_out", "mlp_out")
    elif block.kind == "single" and edited != "resid_post":
        sums["resid_post"] = ("resid_pre", *({"attn_out", "mlp_out"} & set(found)))
    if "next" in found:
        sums["next"] = ("resid_post",)
    for total, parts in sums.items():
        summed = [found[part].astype(np.float64) for part in parts]
        error = _error(found[total], np.sum(summed, axis=0), np.sum(np.abs(summed), axis=0))
        told = f"{when}, {'the next resid_pre' if total == 'next' else total} must be {' + '.join(parts)}"
        proof.holds(edited or parts[-1], error, trial.tolerance, told)


def _each_head(value: Array, n_heads: int) -> Array:
    """Each query head's own values: [key, head, d_head]."""
    return np.repeat(value, n_heads // value.shape[1], axis=1)
