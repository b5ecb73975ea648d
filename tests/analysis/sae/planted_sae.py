"""SAEs whose answers are known: the dictionary is given, and activations are made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probewire.analysis.sae.model.configs import import_sae_lens
from probewire.analysis.sae.model.loaded import LoadedSae
from probewire.analysis.sae.scoring.probe_rows import ProbeRows, TextRows

__all__ = ["orthonormal", "probe_rows", "sae_of"]

TOKENS = 3


def orthonormal(n: int, d_in: int, seed: int = 0) -> NDArray[np.float64]:
    """[n, d_in]."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d_in, d_in)))[0].T[:n]


def sae_of(
    w_dec: NDArray[Any], *, w_enc: NDArray[Any] | None = None, b_enc: float = 0.0, trained: bool = True
) -> LoadedSae:
    """A ReLU SAE of sae-lens with this decoder [d_sae, d_in], its encoder the transpose unless given ([d_in, d_sae])."""
    sae_lens = import_sae_lens()
    d_sae, d_in = w_dec.shape
    sae: Any = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=d_in, d_sae=d_sae, device="cpu"))
    weights = {"W_dec": w_dec, "W_enc": w_dec.T if w_enc is None else w_enc, "b_enc": np.full(d_sae, b_enc)}
    for name, value in weights.items():
        getattr(sae, name).data = torch.tensor(np.ascontiguousarray(value), dtype=torch.float32)
    return LoadedSae(Path("planted"), sae, {"metadata": {"l0": 1.0} if trained else {}})


def probe_rows(activations: dict[str, tuple[Any, Any]], name: str = "planted") -> ProbeRows:
    """Class → (training, held-out) means [text, d_in]; each text's tokens are its mean, times 0.5, 1 and 1.5."""
    splits: list[TextRows] = []
    for side in (0, 1):
        rows = np.concatenate([found[side] for found in activations.values()])
        tokens = rows[:, None, :] * np.array([0.5, 1.0, 1.5])[None, :, None]
        labels = np.repeat(np.arange(len(activations)), [len(found[side]) for found in activations.values()])
        splits.append(
            TextRows(tokens.reshape(-1, rows.shape[1]).astype(np.float32), np.full(len(rows), TOKENS), labels)
        )
    return ProbeRows(name, tuple(activations), splits[0], splits[1], "planted")
