"""Steering vectors for the chat: from a file, or made on the spot from two prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy as safetensors_numpy
from numpy.typing import NDArray

from ...clients.client import Client
from ...clients.requests.hooks import steer
from ...protos.errors import InvalidArgument
from ...protos.sites import Site, SitePattern
from ...protos.spec import Hook
from ...protos.tensors import Array

__all__ = ["Steering", "between_prompts", "from_file", "parse_steering"]

_numpy: Any = safetensors_numpy  # not annotated


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """h + alpha·v at a site, for every token."""

    site: str
    vector: Array
    """[width], or [n_heads, width] at head sites."""
    alpha: float
    origin: str
    """Where the vector comes from, for people."""

    def hook(self) -> Hook:
        """As the server takes it."""
        return steer(self.site, self.vector, self.alpha)

    def __str__(self) -> str:
        norm = float(np.linalg.norm(self.vector.astype(np.float32)))
        return f"{self.site} + {self.alpha:g} × {self.origin} (norm {norm:.3g})"


def parse_steering(text: str) -> Steering:
    """From `SITE=FILE[:ALPHA]`. Raises InvalidArgument."""
    site, equals, rest = text.partition("=")
    if not equals or not rest:
        raise InvalidArgument(
            f"--steer {text!r}: write SITE=FILE or SITE=FILE:ALPHA, such as resid_post.15=happy.npy:4"
        )
    path, colon, number = rest.rpartition(":")
    try:
        alpha = float(number) if colon else 1.0
    except ValueError:
        path, alpha = rest, 1.0
    return from_file(site, path if colon and path else rest, alpha)


def from_file(site: str, path: str, alpha: float) -> Steering:
    """A vector in a .npy or .safetensors file; `FILE#NAME` picks one of several. Raises InvalidArgument."""
    SitePattern.parse(site)
    file, _, name = path.partition("#")
    vector = _read(Path(file), name)
    if vector.dtype.kind not in "fV" or vector.ndim not in (1, 2):
        raise InvalidArgument(
            f"{path} holds {vector.dtype} of shape {list(vector.shape)}; a steering vector is [width]"
        )
    return Steering(site, vector, alpha, path)


def _read(path: Path, name: str) -> Array:
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".safetensors":
            return _chosen(_numpy.load_file(path), name, path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InvalidArgument(f"cannot read the vector in {path}: {error}") from None
    raise InvalidArgument(f"cannot read a vector from {path}; allowed: .npy and .safetensors")


def _chosen(tensors: dict[str, Array], name: str, path: Path) -> Array:
    if name in tensors:
        return tensors[name]
    if not name and len(tensors) == 1:
        return next(iter(tensors.values()))
    raise InvalidArgument(
        f"{path} holds {', '.join(tensors) or 'nothing'}; choose one: {path}#{next(iter(tensors), 'NAME')}"
    )


def between_prompts(client: Client, model: str, site: str, towards: str, away: str, alpha: float) -> Steering:
    """The mean row of one prompt minus that of another, as long as a tenth of a row at the site.

    So alpha means the same at every site and model: 10 is as much as is there. The first token of each prompt is left
    out: it soaks up attention and has a norm of its own, which says nothing of the prompt.
    """
    name = str(Site.parse(site))
    run = client.run({"towards": towards, "away": away}, capture=name, model=model)
    rows = [_without_first(run.inputs[key][name]) for key in ("towards", "away")]
    direction = rows[0].mean(axis=0) - rows[1].mean(axis=0)
    norm = float(np.linalg.norm(direction))
    if not norm:
        raise InvalidArgument(f"{towards!r} and {away!r} are the same at {name}, so there is no direction between them")
    typical = float(np.linalg.norm(np.concatenate(rows).reshape(sum(map(len, rows)), -1), axis=1).mean())
    return Steering(name, direction * (0.1 * typical / norm), alpha, f"({towards!r} − {away!r})")


def _without_first(rows: Array) -> NDArray[np.float32]:
    rows = rows.astype(np.float32)
    return rows[1:] if len(rows) > 1 else rows
