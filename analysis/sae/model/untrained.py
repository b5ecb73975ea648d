"""The control of every score: an SAE of the same shape that was never trained."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path
from typing import Any

from ....protos.errors import InvalidArgument
from .configs import import_sae_lens
from .loaded import LoadedSae

__all__ = ["untrained_like"]


def untrained_like(sae: LoadedSae, folder: str | Path, *, seed: int = 0) -> Path:
    """Save an SAE of the same class and config that no step was ever taken of, drawn with the seed; returns the folder.

    As sae-lens begins: random decoder directions, the encoder their transpose, biases 0; each direction of norm 1, so
    that a latent holds the row's projection on it. Thresholds, where it has any, are 0: it is as dense as its
    architecture lets it be. Raises InvalidArgument when the folder is not empty.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InvalidArgument(f"{folder} is not empty; an untrained SAE is written into a folder of its own")
    torch: Any = import_module("torch")
    config = copy.deepcopy(sae.sae.cfg)
    config.device = "cpu"
    metadata: Any = import_sae_lens().saes.sae.SAEMetadata
    config.metadata = metadata(hook_name=sae.site, sae_lens_training_version=None, control=f"untrained, seed {seed}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = type(sae.sae)(config)
    made.W_dec.data = made.W_dec.data / made.W_dec.data.norm(dim=-1, keepdim=True)
    made.W_enc.data = made.W_dec.data.T.clone().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    made.save_model(folder)
    return folder
