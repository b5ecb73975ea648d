"""Facts written into a model's MLPs: values to write, keys to write them at, and one solve a layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...clients import Base, Client, Delta, Hook, Manifest, Variant
from ...clients.progress import progress_bar
from ...clients.requests.hooks import Hooks
from ...protos.errors import InvalidArgument, NotFound, Unsupported
from ...protos.model import ModelInfo
from .edited import Edited, variant_hooks
from .fact import Fact
from .finetune import finetune
from .keys import fact_rows, preserved_keys
from .moments import Moments
from .solver import Mode, Solved, likeness, solve_delta
from .target_value import TargetValue, require_linear_output, target_value
from .wording import PREFIXES

__all__ = ["DEPTH", "Method", "default_layers", "edit_facts", "inject_facts"]

Floats = NDArray[np.float64]
Method = Literal["exact", "rome", "memit", "null_space", "finetune"]
"""exact: least change with the neighbours' keys preserved. rome: the same without them. memit, null_space: spread over
layers, by regularised least squares and in the null space of what is usual. finetune: the baseline."""

_MODES: dict[str, Mode] = {"exact": "exact", "rome": "exact", "memit": "ridge", "null_space": "null_space"}
DEPTH = 0.15
"""Where facts are written unless a layer is given or looked for, as a share of the layers."""
_TELLS = 0.9
"""Of the plain cosine of neighbours with edited keys: a moment that leaves more of it does not know them."""


def edit_facts(
    client: Client,
    facts: Fact | Sequence[Fact],
    *,
    method: Method = "exact",
    layers: int | Sequence[int] | None = None,
    moments: Moments | None = None,
    preserve: Any = None,
    values: Sequence[TargetValue] | None = None,
    prefixes: Sequence[str] = PREFIXES,
    name: str = "",
    hooks: Hooks = (),
    solver: Mapping[str, Any] | None = None,
    value: Mapping[str, Any] | None = None,
    progress: bool = True,
    model: str = "",
) -> Edited:
    """Write facts into `w_down` of some layers, as a variant; the model itself stays as it is.

    `layers`: None: the one at 15 % of the depth (`choose_layer` looks for a better one); several: the change is spread as
    MEMIT spreads it, keys of each layer measured under the layers before it. `moments`: second moments of `mlp_act` there
    (`second_moment`); needed for null_space. `preserve`: more keys to leave alone, [d_mlp, p], besides those of the facts'
    neighbours that are not held out (exact and null_space). `values`: found before, at the last of the layers, so that
    several methods share them. `solver`, `value`: options of `solve_delta` and `target_value`. `hooks`: what is in place.
    Raises what these raise: keys that cannot be told apart, models whose MLP ends in more than a matrix.
    """
    listed = (facts,) if isinstance(facts, Fact) else tuple(facts)
    if method not in get_args(Method):
        raise InvalidArgument(f"method {method!r}; allowed: {', '.join(get_args(Method))}")
    if not listed:
        raise InvalidArgument("there are no facts to edit")
    info = client.describe(model)
    at = _layers(info, layers)
    if moments is not None:
        moments.of_model(info)
    notes = (
        []
        if layers is not None
        else [f"layer {at[0]} is {DEPTH:.0%} of the depth; choose_layer looks for a better one"]
    )
    options = {"layers": list(at), **dict(solver or {}), **dict(value or {})}
    if method == "finetune":
        found = finetune(client, listed, at[-1], hooks=hooks, model=model, **dict(value or {}))
        deltas = {f"w_down.{at[-1]}": Delta(found.a, found.b)}
        options["loss"] = found.losses[-1]
        return _edited(client, info, listed, method, (at[-1],), (), {}, deltas, options, notes, name)
    if values is None:
        values = _values(client, listed, at[-1], prefixes, hooks, dict(value or {}), progress, model)
    _check_values(values, listed, at[-1])
    plan = _Spread(client, listed, tuple(values), at, prefixes, hooks, model)
    solved: dict[str, Solved] = {}
    for index, layer in enumerate(at):
        keys, wanted = plan.problem(index)
        kept = _kept(client, listed, layer, method, preserve, plan.hooks, model)
        moment = None if moments is None else moments[f"mlp_act.{layer}"].second
        try:
            one = solve_delta(keys, wanted, moment=moment, preserve=kept, mode=_MODES[method], **dict(solver or {}))
        except InvalidArgument as error:
            told = ", ".join(f"{i}: {fact.asked!r}" for i, fact in enumerate(listed[:12]))
            raise InvalidArgument(f"layer {layer}: {error.message}. Keys, in order: {told}") from None
        solved[f"w_down.{layer}"] = one
        plan.add(layer, one)
        if kept is not None:
            notes.append(
                f"layer {layer}: {kept.shape[1]} keys of neighbours preserved, {one.free_dimensions} dimensions left"
            )
        if moment is not None and kept is not None and (told := _unprotected(keys, kept, moment)):
            notes.append(f"layer {layer}: {told}")
        if moments is not None and not moments[f"mlp_act.{layer}"].enough:
            notes.append(f"layer {layer}: the moments are of fewer than three tokens a dimension")
    deltas = {weight: Delta(one.a, one.b) for weight, one in solved.items()}
    return _edited(client, info, listed, method, at, tuple(values), solved, deltas, options, notes, name)


def inject_facts(client: Client, facts: Fact | Sequence[Fact], **options: Any) -> Edited:
    """As `edit_facts`, for what the model does not know yet. Raises InvalidArgument for facts with a true target."""
    listed = (facts,) if isinstance(facts, Fact) else tuple(facts)
    known = [fact.asked for fact in listed if fact.target_true]
    if known:
        raise InvalidArgument(
            f"{known[:3]} have a true target, so the model knows them: edit_facts changes what it knows"
        )
    return edit_facts(client, listed, **options)


def default_layers(info: ModelInfo) -> tuple[int, ...]:
    """The layer at 15 % of the depth."""
    return (min(round(DEPTH * info.n_layers), info.n_layers - 1),)


class _Spread:
    """What each layer has to do, given what the layers before it do already."""

    def __init__(
        self,
        client: Client,
        facts: tuple[Fact, ...],
        values: tuple[TargetValue, ...],
        layers: tuple[int, ...],
        prefixes: Sequence[str],
        hooks: Hooks,
        model: str,
    ) -> None:
        self._client, self._facts, self._values, self._layers = client, facts, values, layers
        self._prefixes, self._model = prefixes, model
        self.hooks: list[Any] = list(hooks) if isinstance(hooks, (list, tuple)) else [hooks]
        self._aim: Floats | None = None

    def problem(self, index: int) -> tuple[Floats, Floats]:
        """(keys [d_mlp, u], wanted changes [d_model, u]) of a layer: its share of what is still missing."""
        delta = np.stack([one.delta for one in self._values], axis=1)
        if len(self._layers) == 1:
            return np.stack([one.key for one in self._values], axis=1), delta
        act, stream = f"mlp_act.{self._layers[index]}", f"resid_post.{self._layers[-1]}"
        rows = fact_rows(self._client, self._facts, [act, stream], self._prefixes, hooks=self.hooks, model=self._model)
        if self._aim is None:
            self._aim = rows[stream].T + delta
        return rows[act].T, (self._aim - rows[stream].T) / (len(self._layers) - index)

    def add(self, layer: int, one: Solved) -> None:
        """A layer is done: what follows is measured with it."""
        self.hooks = [*self.hooks, *_hooks_of(layer, one)]


def _hooks_of(layer: int, one: Solved) -> list[Hook]:
    return variant_hooks(Variant({f"w_down.{layer}": Delta(one.a, one.b)}))


def _values(
    client: Client,
    facts: tuple[Fact, ...],
    layer: int,
    prefixes: Sequence[str],
    hooks: Hooks,
    options: dict[str, Any],
    progress: bool,
    model: str,
) -> tuple[TargetValue, ...]:
    found: list[TargetValue] = []
    with progress_bar("values to write", "prompts", show=progress and len(facts) > 1) as bar:
        for fact in facts:
            found.append(target_value(client, fact, layer, prefixes=prefixes, hooks=hooks, model=model, **options))
            bar(len(found), len(facts))
    return tuple(found)


def _check_values(values: Sequence[TargetValue], facts: tuple[Fact, ...], layer: int) -> None:
    if [one.fact for one in values] != list(facts) or any(one.layer != layer for one in values):
        raise InvalidArgument(
            f"values are of {len(values)} facts at layers {sorted({one.layer for one in values})}; the edit needs those of "
            f"its own {len(facts)} facts, in order, at layer {layer}"
        )


def _kept(
    client: Client, facts: tuple[Fact, ...], layer: int, method: str, more: Any, hooks: Hooks, model: str
) -> Floats | None:
    found = (
        preserved_keys(client, facts, layer, hooks=hooks, model=model) if method in ("exact", "null_space") else None
    )
    parts = [np.asarray(one, dtype=np.float64) for one in (found, more) if one is not None]
    return np.concatenate(parts, axis=1) if parts else None


def _unprotected(keys: Floats, kept: Floats, moment: Floats) -> str:
    """A sentence where a moment tells neighbours from the edited keys no better than plain inner products do."""
    plain, told = likeness(keys, kept), likeness(keys, kept, moment=moment)
    if told <= _TELLS * plain:
        return ""
    return (
        f"the moments' text does not speak of the neighbours (cosine with the edited keys {told:.2f} in its metric, {plain:.2f} without), so "
        "they protect none of them; give second_moment sentences about such subjects"
    )


def _layers(info: ModelInfo, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    if layers is None:
        found = default_layers(info)
    else:
        found = tuple(sorted({layers} if isinstance(layers, int) else set(layers)))
    if not found:
        raise InvalidArgument("layers is empty; give one, several, or None for the default")
    for layer in found:
        require_linear_output(info, layer)
    return found


def _edited(
    client: Client,
    info: ModelInfo,
    facts: tuple[Fact, ...],
    method: str,
    layers: tuple[int, ...],
    values: tuple[TargetValue, ...],
    solved: Mapping[str, Solved],
    deltas: Mapping[str, Delta],
    options: Mapping[str, Any],
    notes: Sequence[str],
    name: str,
) -> Edited:
    records = json.dumps([asdict(fact) for fact in facts], sort_keys=True, ensure_ascii=False)
    manifest = Manifest(
        name=name,
        base=Base.of(info),
        method=method,
        options=options,
        data={"records": len(facts), "sha256": hashlib.sha256(records.encode()).hexdigest()},
        norms={weight: _norms(client, info, weight, one) for weight, one in deltas.items()},
        made={
            "utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "backend": info.backend,
            "device": info.device,
            "versions": dict(info.versions),
        },
    )
    return Edited(Variant(deltas, manifest=manifest), method, layers, values, solved, tuple(notes))


def _norms(client: Client, info: ModelInfo, weight: str, delta: Delta) -> dict[str, float]:
    """Of a delta, and beside the weight that it changes, where the model gives that."""
    told = {"rank": float(delta.rank), "norm": delta.norm()}
    path = next((one.path for one in info.weights if one.name == weight), None)
    if path is not None:
        try:
            whole = client.weights(f"{path}.weight", model=info.id, progress=False)
        except (NotFound, Unsupported):  # several in one matrix, or another name in the checkpoint
            return told
        told["relative_norm"] = told["norm"] / float(np.linalg.norm(np.asarray(whole, dtype=np.float64)))
    return told
