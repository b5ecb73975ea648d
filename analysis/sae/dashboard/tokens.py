"""What a latent's decoder direction says to the unembedding, and which other latents point its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ....clients import Client
from ....protos.errors import InvalidArgument, Unsupported
from ....protos.model import ModelInfo
from ....protos.sites import Site

__all__ = ["IGNORED", "Readout", "TokenEffects", "nearest", "readout", "token_effects"]

Floats = NDArray[np.float32]

NORMS = ("model.norm.weight", "norm.weight", "transformer.ln_f.weight", "ln_f.weight")
UNEMBEDDINGS = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
)
"""Checkpoint names, the first found wins: a model that ties its embeddings has no lm_head of its own."""
WRITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "embed")
"""Sites whose rows are, or are added to, the residual stream."""
BATCH = 512
"""Latents at once."""

IGNORED = (
    "Token effects are W_dec · (w ⊙ W_U)ᵀ, w the final norm's weight, less the mean over the vocabulary: what one unit of "
    "the latent writes straight to the logits. Ignored: every layer after the site, the final norm's scale (one positive "
    "factor a position, so the order stands but not the size), its bias and the unembedding's, and any softcap of the logits."
)


@dataclass(frozen=True, slots=True, eq=False)
class Readout:
    """The linear part of the way from the residual stream to the logits."""

    unembedding: Floats
    """[vocab, d_model], the final norm's weight folded in."""
    centred: bool
    """Whether the norm takes the mean away first (LayerNorm)."""

    def effects(self, directions: Floats) -> Floats:
        """[direction, vocab]: less their mean over the vocabulary, which no softmax sees."""
        moved = directions - directions.mean(axis=1, keepdims=True) if self.centred else directions
        logits = moved.astype(np.float32) @ self.unembedding.T
        return logits - logits.mean(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, eq=False)
class TokenEffects:
    """The tokens that each of some latents promotes and suppresses most."""

    promoted: NDArray[np.int64]
    """[latent, k] token ids, most promoted first."""
    promoted_by: Floats
    """[latent, k]"""
    suppressed: NDArray[np.int64]
    """[latent, k] token ids, most suppressed first."""
    suppressed_by: Floats
    """[latent, k]"""


def readout(client: Client, site: str, *, model: str = "") -> Readout:
    """Fetches the final norm's weight and the unembedding. Raises Unsupported where the site does not write to the

    residual stream, or the checkpoint names them in no known way.
    """
    info, kind = client.describe(model), Site.parse(site).name
    if kind not in WRITES:
        raise Unsupported(f"rows of {site} are not added to the residual stream, so they have no logits of their own")
    if kind in ("attn_out", "mlp_out") and info.architecture.startswith(("gemma2", "gemma3")):
        raise Unsupported(f"{info.architecture} puts a norm between {site} and the residual stream")
    known = client.weight_names(model=model)
    norm = np.asarray(client.weights(_named(known, NORMS, info, "final norm"), model=model), dtype=np.float32)
    unembedding = np.asarray(client.weights(_named(known, UNEMBEDDINGS, info, "unembedding"), model=model), np.float32)
    if info.architecture.startswith("gemma"):
        norm = 1 + norm  # as gemma's norm has it
    return Readout(unembedding * norm, centred=info.architecture.startswith("gpt2"))


def _named(known: dict[str, tuple[int, ...]], names: tuple[str, ...], info: ModelInfo, what: str) -> str:
    found = next((name for name in names if name in known), None)
    if found is None:
        raise Unsupported(f"{info.id} has no {what} under a known name ({', '.join(names)})")
    return found


def token_effects(directions: Floats, read: Readout, k: int = 10) -> TokenEffects:
    """The `k` tokens that each direction, [latent, d_model], promotes and suppresses most."""
    if directions.ndim != 2 or directions.shape[1] != read.unembedding.shape[1]:
        raise InvalidArgument(
            f"directions have shape {list(directions.shape)}; the unembedding reads width {read.unembedding.shape[1]}"
        )
    k = min(k, len(read.unembedding))
    parts: list[tuple[NDArray[np.int64], Floats, NDArray[np.int64], Floats]] = []
    for start in range(0, len(directions), BATCH):
        effects = read.effects(directions[start : start + BATCH])
        parts.append((*_first(effects, k, -1), *_first(effects, k, 1)))
    return TokenEffects(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _first(values: Floats, k: int, sign: Literal[1, -1]) -> tuple[NDArray[np.int64], Floats]:
    """Indices and values of the `k` smallest of each row by sign·value, in order."""
    some = np.argpartition(sign * values, k - 1, axis=1)[:, :k]
    order = np.argsort(sign * np.take_along_axis(values, some, axis=1), axis=1, kind="stable")
    chosen = np.take_along_axis(some, order, axis=1)
    return chosen.astype(np.int64), np.take_along_axis(values, chosen, axis=1)


def nearest(w_dec: Floats, latents: NDArray[np.int64], k: int = 5) -> tuple[NDArray[np.int64], Floats]:
    """The `k` other latents whose decoder rows have the largest cosine with each of `latents`: ids and cosines, [latent, k]."""
    norms = np.linalg.norm(w_dec, axis=1, keepdims=True)
    unit = (w_dec / np.where(norms == 0, 1, norms)).astype(np.float32)  # a latent without a direction is near nothing
    k = min(k, len(w_dec) - 1)
    if not k:
        return np.empty((len(latents), 0), dtype=np.int64), np.empty((len(latents), 0), dtype=np.float32)
    ids: list[NDArray[np.int64]] = []
    cosines: list[Floats] = []
    for start in range(0, len(latents), BATCH):
        own = latents[start : start + BATCH]
        found = unit[own] @ unit.T
        found[np.arange(len(own)), own] = -np.inf
        some, values = _first(found, k, -1)
        ids.append(some)
        cosines.append(values)
    return np.concatenate(ids), np.concatenate(cosines)
