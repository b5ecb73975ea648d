"""The axes of a result's arrays with their labels: layers, positions, tokens, inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ...protos.errors import InvalidArgument
from ...protos.latents import ReadLatents
from ...protos.model import Started
from ...protos.sites import LAYER_SITES, Site
from ...protos.spec import Gather, NextLogprob, Norm, Project, Reduction
from ...protos.tensors import Array
from ...protos.wire.assemble import AssembledCapture, row_axis
from ..requests.asked import Asked
from .input_result import InputResult
from .labelled import Labelled, required

__all__ = ["dataset", "labelled", "reduction_of", "token_table"]


class Stackable(Protocol):
    """A result, as far as its arrays and their axes go."""

    @property
    def started(self) -> Started:
        """Of which model."""
        ...

    @property
    def inputs(self) -> Mapping[str, InputResult]:
        """By name."""
        ...

    @property
    def asked_or_none(self) -> Asked | None:
        """What was asked, where that is known."""
        ...

    @property
    def answered(self) -> Sequence[str]:
        """Inputs that something was asked of."""
        ...

    @property
    def sites(self) -> Sequence[str]:
        """What was captured."""
        ...

    def stack(self, name: str, *, inputs: bool | None = None) -> Array:
        """One array over the inputs."""
        ...


def labelled(result: Stackable, name: str, inputs: bool | None) -> Labelled:
    """What `result.stack(name)` gives, with its axes. Raises as it does."""
    array = result.stack(name, inputs=inputs)
    items = [result.inputs[one] for one in result.answered]
    first = items[0].captures
    sites = first.sites_of(name)
    entry = first.entry(name if sites is None else sites[0])
    dims, labels = _own(entry, reduction_of(result, entry))
    if sites is not None:
        dims, labels["layer"] = ["layer", *dims], [Site.parse(site).layer for site in sites]
    if len(dims) < array.ndim:
        dims, labels["input"] = ["input", *dims], list(result.answered)
    beside = _rows(items, entry, name if sites is None else sites[0], dims, labels)
    started = result.started
    about = {"site": name, "model": started.model, "model_hash": started.model_hash, "backend": started.backend}
    return Labelled(array, tuple(dims), labels, beside, about)


def _own(entry: AssembledCapture, reduce: Reduction | None) -> tuple[list[str], dict[str, Any]]:
    """Names of a capture's own axes, and labels that its reduction gives."""
    dims, labels = list(Site.parse(entry.key.site).axes), dict[str, Any]()
    ids = reduce.ids if isinstance(reduce, (Gather, ReadLatents)) else None
    if isinstance(reduce, (Norm, NextLogprob)):
        dims.pop()
    elif isinstance(reduce, (Project, Gather, ReadLatents)):
        dims[-1] = {Project: "direction", Gather: "unit", ReadLatents: "latent"}[type(reduce)]
    if ids is not None:
        labels[dims[-1]] = list(ids)
    if len(dims) != entry.array.ndim:  # of a hook that we do not know, such as one of a session
        return [f"axis_{index}" for index in range(entry.array.ndim)], {}
    return dims, labels


def reduction_of(result: Stackable, entry: AssembledCapture) -> Reduction | None:
    """What a capture asked for in place of whole rows; None also where the result does not say."""
    asked = result.asked_or_none
    if asked is None or entry.key.hook >= len(asked.plan.hooks):
        return None
    capture = asked.plan.hooks[entry.key.hook].capture
    return None if capture is None else capture.reduce


def _rows(
    items: list[InputResult], entry: AssembledCapture, site: str, dims: list[str], labels: dict[str, Any]
) -> dict[str, tuple[str, list[Any]]]:
    """Adds the positions of rows that all inputs share; gives the tokens there, where there is one input.

    Rows whose positions differ, or that are of all of them (a mean), are counted along an axis `row`.
    """
    at = len(dims) - entry.array.ndim + row_axis(entry.key.site)
    rows, keys = dims[at], "key" in dims
    positions = {item.captures.positions(site) for item in items}
    if len(positions) != 1 or not (where := positions.pop()):
        dims[at] = "row"
        return {}
    labels[rows] = list(where)
    if len(items) > 1:
        return {}
    tokens = items[0].tokens
    beside = {"token": (rows, [tokens[position] for position in where])}
    if keys:
        beside["key_token"] = ("key", list(tokens[: entry.array.shape[-1]]))
    return beside


def dataset(result: Stackable, inputs: bool | None) -> Any:
    """An xarray.Dataset, a variable a kind of site with its layers, or a site where one layer was captured.

    Raises InvalidArgument where their rows or layers differ.
    """
    xarray = required("xarray", "to_xarray")
    sites = [Site.parse(name) for name in result.sites]
    n_layers = Counter(site.name for site in sites)
    kinds = [site.name if site.name in LAYER_SITES and n_layers[site.name] > 1 else str(site) for site in sites]
    arrays = [labelled(result, kind, inputs).to_xarray(kind) for kind in dict.fromkeys(kinds)]
    try:
        return xarray.merge(arrays, join="exact", combine_attrs="drop_conflicts", compat="equals")
    except ValueError as error:
        names = ", ".join(dict.fromkeys(kinds))
        raise InvalidArgument(
            f"the rows or layers of {names} differ, so they are no one dataset; name one: to_xarray({kinds[0]!r})"
        ) from error


def token_table(result: Stackable) -> Any:
    """A pandas.DataFrame with a row a token."""
    pandas = required("pandas", "to_pandas")
    rows = [
        {
            "input": item.name,
            "position": position,
            "id": item.token_ids[position],
            "token": token,
            "new": position >= len(item.prompt_ids),
            "logprob": None if position < len(item.prompt_ids) else item.new[position - len(item.prompt_ids)].logprob,
        }
        for item in result.inputs.values()
        for position, token in enumerate(item.tokens)
    ]
    return pandas.DataFrame(rows, columns=["input", "position", "id", "token", "new", "logprob"])
