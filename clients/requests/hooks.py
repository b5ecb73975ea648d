"""Short ways to write the hooks of everyday use. Each gives a plain `Hook`; write a Hook yourself for the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal, TypedDict, Unpack, cast, overload

from ...protos.edits import Add, Constant, Edit, FromInput, Inline, ProjectOut, Replace, Source, Stored, Zeros
from ...protos.errors import InvalidArgument
from ...protos.latents import LatentChange, Latents, ReadLatents
from ...protos.spec import Capture, Hook, Last, Mean, NextLogprob, Norm, Plan, Reduction, Span, When, Where
from ...protos.tensors import Array, Tensor
from ...protos.wire.codec import from_json, to_json
from ..steering import SteeringVector
from .for_model import ForModel, for_model, plain

__all__ = [
    "HookLike",
    "Hooks",
    "Options",
    "Values",
    "ablate",
    "capture",
    "edit_latents",
    "hook",
    "patch",
    "planned",
    "reconstruct",
    "steer",
    "to_plan",
]

HookLike = Hook | Mapping[str, Any]
"""A hook, as a value or as JSON data: {"site": …, "edit": {"add": …}, …}."""
Hooks = HookLike | Sequence[HookLike | Sequence[HookLike]]
Values = Tensor | Array | Sequence[Any]
"""Numbers as an array or nested lists."""

_REDUCTIONS: dict[str, Reduction] = {"last": Last(), "mean": Mean(), "norm": Norm(), "next_logprob": NextLogprob()}


class Options(TypedDict, total=False):
    """Where a hook applies, and its label. All optional; left out: every token of every input."""

    positions: int | Sequence[int]
    """Absolute token positions; negative: from the prompt's end."""
    spans: Sequence[Span | tuple[int, int | None]]
    """Half-open (start, stop) pairs; a stop of None: to the end."""
    phase: Literal["all", "prompt", "generated"]
    token_ids: Sequence[int]
    """Only rows whose input token is one of these."""
    when: When | Mapping[str, Any]
    inputs: str | Sequence[str]
    """Names of the inputs it applies to."""
    id: str
    """A label that comes back with the tensors."""


@overload
def steer(
    site: str,
    vector: Values,
    alpha: float = 1.0,
    *,
    norm_match: bool = False,
    units: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    **options: Unpack[Options],
) -> Hook: ...


@overload
def steer(
    site: SteeringVector,
    vector: float = 1.0,
    alpha: float = 1.0,
    *,
    norm_match: bool = False,
    any_model: bool = False,
    units: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    **options: Unpack[Options],
) -> tuple[Hook, ...]: ...


def steer(
    site: str | SteeringVector,
    vector: Any = 1.0,
    alpha: float = 1.0,
    *,
    norm_match: bool = False,
    any_model: bool = False,
    units: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    **options: Unpack[Options],
) -> Hook | tuple[Hook, ...]:
    """Add alpha·vector; with `norm_match`, alpha·‖h‖·v/‖v‖.

    `vector` is [width], or [n_heads, width] at head sites; `units` and `heads` narrow it to a part of each row.
    `steer(vector, 3)` or `steer(vector, alpha=3)` with a SteeringVector is a hook a site of it, each refused on another
    model unless `any_model`.
    """
    part = {"units": _indices(units), "heads": _indices(heads)}
    if isinstance(site, str):
        return hook(site, Add(Tensor.of(vector), alpha, norm_match, **part), **options)
    found: list[Hook] = []
    for index, (name, direction) in enumerate(site.directions.items()):
        label: Options = {"id": f"{options['id']}.{index}"} if "id" in options and len(site.directions) > 1 else {}
        made = hook(name, Add(Tensor.of(direction), vector * alpha, norm_match, **part), **{**options, **label})
        found.append(made if any_model else for_model(made, site.model_hash))
    return tuple(found)


def ablate(
    site: str,
    *,
    units: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    mean: Values | None = None,
    directions: Values | None = None,
    **options: Unpack[Options],
) -> Hook:
    """Take something out: zeros by default, `mean` ([width]) in its place, or only the span of `directions` ([n, width])."""
    part = {"units": _indices(units), "heads": _indices(heads)}
    if directions is not None:
        if mean is not None:
            raise InvalidArgument("ablate takes mean or directions, not both; write two hooks for both")
        return hook(site, ProjectOut(Tensor.of(directions), **part), **options)
    source = Zeros() if mean is None else Constant(Tensor.of(mean))
    return hook(site, Replace(source, **part), **options)


def patch(
    site: str,
    *,
    from_input: str | None = None,
    source_positions: int | Sequence[int] | None = None,
    value: Values | float | None = None,
    stored: str | None = None,
    units: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    **options: Unpack[Options],
) -> Hook:
    """Put other rows in place of the chosen ones, in order: exactly one of

    `from_input` (the same site in another input of the request, at `source_positions` or else the hook's own),
    `value` (rows sent along, with the site's own axes; or one number for all) and `stored` (the id of a capture kept on
    the server). `patch("attn_scores.5", value=-inf, units=[2])` takes key 2 out: what is left still sums to 1.
    """
    given = [name for name, v in (("from_input", from_input), ("value", value), ("stored", stored)) if v is not None]
    if len(given) != 1:
        raise InvalidArgument(f"patch needs exactly one of from_input, value and stored, got {given or 'none'}")
    if source_positions is not None and from_input is None:
        raise InvalidArgument("patch: source_positions are positions of another input; give from_input with them")
    source: Source
    if from_input is not None:
        source = FromInput(from_input, _indices(source_positions))
    elif value is not None:
        tensor = Tensor.of(value)
        source = Inline(tensor) if tensor.shape else Constant(tensor)
    else:
        source = Stored(cast("str", stored))
    return hook(site, Replace(source, units=_indices(units), heads=_indices(heads)), **options)


def capture(
    site: str,
    *,
    reduce: Reduction | Literal["last", "mean", "norm", "next_logprob"] | None = None,
    dtype: str | None = None,
    before: bool = False,
    store: bool = False,
    latents: str | None = None,
    top_k: int | None = None,
    latent_ids: Sequence[int] | None = None,
    **options: Unpack[Options],
) -> Hook:
    """Read a site. `reduce` runs on the server, so that bytes nobody needs never move; `before`: before any edit.

    `latents`: the name of an SAE loaded onto the site, of which come the `top_k` most active latents of each row (read
    them with `captures.latents(site)`), those of `latent_ids` ([pos, n]), or, with neither, all ([pos, d_sae]).
    """
    if latents is None:
        if top_k is not None or latent_ids is not None:
            raise InvalidArgument('top_k and latent_ids are of an SAE: name it, latents="…" (or give reduce=TopK(k))')
        return hook(site, None, Capture(before, dtype, _reduction(reduce), store), **options)
    if reduce is not None:
        raise InvalidArgument("capture takes reduce or latents, not both; write two hooks for both")
    return hook(site, None, Capture(before, dtype, ReadLatents(latents, top_k, _indices(latent_ids)), store), **options)


def edit_latents(
    site: str,
    sae: str,
    changes: Mapping[int, float | Mapping[str, Any]],
    *,
    error: bool = True,
    **options: Unpack[Options],
) -> Hook:
    """Change latents of an SAE loaded onto the site; what it does not explain of each row stays as it is.

    `changes`: latent → the activation it is set to, or {"set" | "add" | "scale": x}, or {"min": x, "max": y}; with
    "active": True only at rows where it fires. Without `error` the SAE's reconstruction takes the row's place.
    """
    listed = tuple(_change(latent, change) for latent, change in changes.items())
    return hook(site, Latents(sae, listed, error), **options)


def reconstruct(site: str, sae: str, **options: Unpack[Options]) -> Hook:
    """Put the reconstruction of an SAE loaded onto the site in the row's place."""
    return hook(site, Latents(sae, (), error=False), **options)


def _change(latent: int, change: float | Mapping[str, Any]) -> LatentChange:
    if isinstance(change, Mapping):
        try:
            return from_json(LatentChange, {"id": int(latent), **change})
        except InvalidArgument as error:
            told = error.message if f"latent {latent} " in error.message else f"latent {latent}: {error.message}"
            raise InvalidArgument(told) from None
    return LatentChange(int(latent), set=float(change))


def hook(site: str, edit: Edit | None = None, capture: Capture | None = None, **options: Unpack[Options]) -> Hook:
    """Any hook, its `where` written flat. Raises InvalidArgument for options that there are not, as all above do."""
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise InvalidArgument(
            f"unknown options {unknown} of a hook at {site}; allowed besides the function's own: "
            f"{', '.join(Options.__annotations__)}"
        )
    inputs = options.get("inputs")
    return Hook(
        site,
        edit,
        capture,
        where_of(options),
        (inputs,) if isinstance(inputs, str) else None if inputs is None else tuple(inputs),
        options.get("id"),
    )


def to_plan(hooks: Hooks = (), captures: str | Hooks | Sequence[str | HookLike] = ()) -> Plan:
    """Hooks, then captures (which therefore see edited values), as one plan. A captured site may be just its name."""
    return planned(hooks, captures)[0]


def planned(hooks: Hooks = (), captures: Any = (), at: Any = ()) -> tuple[Plan, tuple[str, ...]]:
    """The plan, with gradients at the sites of `at`; and the hashes of the models that its steering vectors are for."""
    given = [_to_hook(item) for item in _listed(hooks)]
    given += [_to_hook(item, captures=True) for item in _listed(captures)]
    given += [_with_gradient(_to_hook(item, captures=True)) for item in _listed(at)]
    models = dict.fromkeys(item.model_hash for item in given if isinstance(item, ForModel) and item.model_hash)
    return Plan(tuple(plain(item) for item in given)), tuple(models)


def _with_gradient(value: Hook) -> Hook:
    if value.capture is None or value.edit is not None:
        raise InvalidArgument(
            f"`at` takes sites and hooks that capture; edits such as that of {value.site} go in hooks"
        )
    return replace(value, capture=replace(value.capture, gradient=True))


def _to_hook(value: Any, *, captures: bool = False) -> Hook:
    if isinstance(value, Hook):
        return value
    if isinstance(value, Mapping):
        return from_json(Hook, _plain(value))
    if isinstance(value, str) and captures:
        return Hook(value, capture=Capture())
    fix = f"; to capture a site write capture=[{value!r}]" if isinstance(value, str) else ""
    raise InvalidArgument(f"a hook is a Hook or a dict, got {type(value).__name__}{fix}")


def _listed(value: Any) -> Sequence[Any]:
    if isinstance(value, (Hook, Mapping, str)):
        return (cast("Any", value),)
    items: list[Any] = []
    for item in value:  # what steers with a vector of several layers is a tuple of hooks
        items += _listed(item) if isinstance(item, (tuple, list)) else [item]
    return items


def where_of(options: Options) -> Where:
    when = options.get("when")
    spans = options.get("spans")
    return Where(
        positions=_indices(options.get("positions")),
        spans=None if spans is None else tuple(s if isinstance(s, Span) else Span(*s) for s in spans),
        phase=options.get("phase", "all"),
        token_ids=_indices(options.get("token_ids")),
        when=from_json(Where, {"when": _plain(when)}).when if isinstance(when, Mapping) else when,
    )


def _plain(value: Any) -> Any:
    """JSON data: arrays inside a dict become tensors as JSON has them, tuples lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return to_json(Tensor.of(value))
    return value


def _indices(value: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    return (int(value),) if isinstance(value, Integral) else tuple(cast("Sequence[int]", value))


def _reduction(value: Reduction | str | None) -> Reduction | None:
    if not isinstance(value, str):
        return value
    if value not in _REDUCTIONS:
        raise InvalidArgument(
            f"reduce {value!r}; allowed: {', '.join(_REDUCTIONS)}, or a value: TopK(k), Project(directions), Gather(ids)"
        )
    return _REDUCTIONS[value]
