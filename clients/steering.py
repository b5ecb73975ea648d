"""A steering vector as a value: its directions by site, the model it was made on, how; and the files it lives in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy as safetensors_numpy

from ..protos.errors import FailedPrecondition, InvalidArgument, NotFound
from ..protos.sites import Site
from ..protos.spec import Last, Mean
from ..protos.tensors import Array, Tensor, require_finite
from ..protos.wire.assemble import row_axis
from . import control_vectors
from .control_vectors import ControlVector
from .results.axes import reduction_of
from .results.metadata import metadata_of

if TYPE_CHECKING:
    from ..protos.model import ModelInfo
    from .results.results import Result

__all__ = ["SteeringVector"]

FORMAT = "probewire steering vector 1"

_numpy: Any = safetensors_numpy  # not annotated


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SteeringVector:
    """What `steer(vector, alpha)` adds: alpha·v at each of its sites. Refused on another model than it was made on."""

    directions: Mapping[str, Array]
    """Site → [width], or [head, width] at head sites. Read-only copies."""
    model: str = ""
    """Id of the model that it was made on."""
    model_hash: str = ""
    """Of its weights; empty: not known, and so not checked."""
    made: str = ""
    """How, in words."""
    details: Mapping[str, str] = field(default_factory=dict[str, str])
    """Further provenance."""

    def __post_init__(self) -> None:
        if not self.directions:
            raise InvalidArgument("a steering vector needs a direction: {'resid_post.12': [...]}")
        found: dict[str, Array] = {}
        for name, value in self.directions.items():
            site, tensor = str(Site.parse(name)), Tensor.of(value)
            require_finite(tensor, f"the direction at {site}")
            if len(tensor.shape) not in (1, 2) or not tensor.numpy().astype(np.float64).any():
                raise InvalidArgument(
                    f"the direction at {site} has shape {list(tensor.shape)}; it must be [width] or [head, width], not all 0"
                )
            found[site] = tensor.numpy()
        object.__setattr__(self, "directions", found)
        object.__setattr__(self, "details", dict(self.details))

    @classmethod
    def between(cls, positive: Result, negative: Result, *, made: str = "") -> SteeringVector:
        """Mean row of one result minus that of another, at every site that both captured; every input counts alike.

        Raises FailedPrecondition for results of two models, InvalidArgument where they share no site
        and for captures of anything but a site's own rows.
        """
        ours, theirs = positive.started, negative.started
        if ours.model_hash != theirs.model_hash:
            raise FailedPrecondition(
                f"the results are of two models, {ours.model} ({ours.model_hash}) and {theirs.model} ({theirs.model_hash})"
            )
        sites = [site for site in positive.sites if site in negative.sites]
        if not sites:
            raise InvalidArgument(
                f"the results share no site: {', '.join(positive.sites) or 'none'} and {', '.join(negative.sites) or 'none'}"
            )
        counts = (len(positive.answered), len(negative.answered))
        made = made or f"mean rows of {counts[0]} inputs minus those of {counts[1]}"
        details = {
            "backend": ours.backend,
            "dtype": ours.dtype,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        directions = {site: (_mean(positive, site) - _mean(negative, site)).astype(np.float32) for site in sites}
        return cls(directions, ours.model, ours.model_hash, made, details)

    @property
    def sites(self) -> tuple[str, ...]:
        """Where it acts."""
        return tuple(self.directions)

    @property
    def norms(self) -> dict[str, float]:
        """Length of each direction; of heads, of all together."""
        return {site: float(np.linalg.norm(_floats(value))) for site, value in self.directions.items()}

    def at(self, *sites: str) -> SteeringVector:
        """Its part at some of its sites. Raises NotFound for others."""
        named = [str(Site.parse(site)) for site in sites]
        missing = [site for site in named if site not in self.directions]
        if missing or not named:
            raise NotFound(f"the vector has no direction at {missing or 'no site'}; it has {', '.join(self.sites)}")
        return replace(self, directions={site: self.directions[site] for site in named})

    def scaled(self, factor: float) -> SteeringVector:
        """Every direction times a number."""
        directions = {site: (_floats(value) * factor).astype(np.float32) for site, value in self.directions.items()}
        return replace(self, directions=directions, made=f"{self.made}, × {factor:g}".removeprefix(", "))

    def unit(self) -> SteeringVector:
        """Every direction of length 1."""
        norms = self.norms
        directions = {
            site: (_floats(value) / norms[site]).astype(np.float32) for site, value in self.directions.items()
        }
        return replace(self, directions=directions, made=f"{self.made}, of length 1".removeprefix(", "))

    # ---- files ----

    def save(self, path: str | Path) -> Path:
        """Write it to one safetensors file, a tensor a site, all the rest as JSON in its metadata."""
        path = Path(path)
        told = {"model": self.model, "model_hash": self.model_hash, "made": self.made, "details": dict(self.details)}
        part = path.with_name(path.name + ".part")
        arrays = {site: np.asarray(value, order="C") for site, value in self.directions.items()}
        _numpy.save_file(arrays, part, {"format": FORMAT, "vector": json.dumps(told)})
        part.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> SteeringVector:
        """Read what `save` wrote. Raises NotFound without a file, InvalidArgument for any other file."""
        path = Path(path)
        metadata = metadata_of(path, FORMAT, "SteeringVector.save")
        return cls(_numpy.load_file(path), **json.loads(metadata["vector"]))

    def to_gguf(self, path: str | Path, model: ModelInfo | str) -> Path:
        """Write a control vector as llama.cpp and repeng read it. `model`: the model, or what its config calls its `model_type`.

        Raises InvalidArgument for sites that have no place in such a file, FailedPrecondition for another model's vector.
        """
        if not isinstance(model, str) and self.model_hash not in ("", model.model_hash):
            raise FailedPrecondition(
                f"the vector was made on {self.model} ({self.model_hash}), not on {model.id} ({model.model_hash})"
            )
        hint = model if isinstance(model, str) else model.architecture
        return control_vectors.write(ControlVector(self.directions, self.made, hint), Path(path))

    @classmethod
    def from_gguf(cls, path: str | Path, model: ModelInfo | None = None, *, any_model: bool = False) -> SteeringVector:
        """Read a control vector of llama.cpp or repeng; see `control_vectors.read`."""
        found = control_vectors.read(Path(path), model, any_model=any_model)
        of = ("", "") if model is None else (model.id, model.model_hash)
        return cls(found.directions, *of, found.made, {"file": Path(path).name, "model_hint": found.hint})

    def __repr__(self) -> str:
        of = f" of {self.model}" if self.model else ""
        lines = [f"SteeringVector{of}", *([f"  made  {self.made}"] if self.made else [])]
        return "\n".join([*lines, *(f"  {site}  ‖v‖ {norm:.4g}" for site, norm in self.norms.items())])


def _floats(value: Array) -> Array:
    return np.asarray(value, dtype=np.float64)


def _mean(result: Result, site: str) -> Array:
    """Over inputs, of the mean over each one's rows. Raises InvalidArgument for anything but rows of the site itself."""
    items = [result.inputs[name] for name in result.answered if site in result.inputs[name]]
    for entry in (item.captures.entry(site) for item in items):
        reduce = reduction_of(result, entry)
        if row_axis(site) != 0 or not isinstance(reduce, Last | Mean | None):
            what = "attention over keys" if reduce is None else f"reduced by {type(reduce).__name__.lower()}"
            raise InvalidArgument(
                f"the capture at {site} is {what}, and a direction is made of the site's own rows; capture them whole, or "
                f"reduce='last' or 'mean'"
            )
    return np.mean([_floats(item[site]).mean(axis=0) for item in items], axis=0)
