"""Trainings of a sweep that leave an SAE folder each: resumable within a training, and loadable afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from ..data.batches import Batches, data_hash
from ..model.configs import TrainConfig
from ..scoring.scores import score_rows
from ..seeds.cells import Condition, Trained
from .training import train
from .training_run import AddedLoss

__all__ = ["FolderTrainer"]


class FolderTrainer:
    """A `TrainOne` over any batches, such as an activation store's: `training.train` into a folder a training.

    `batches_of`: fresh batches for a seed (`lambda seed: store.batches(1024, seed=seed)`), of `epoch_rows` rows an
    epoch. `held_out`: [row, d_in], activations that are not among them; explained variance and L0 are of those that are
    not massive. `template`: as of `ArrayTrainer`; it may normalise. `folder`: where the SAEs go.
    Raises InvalidArgument for held-out rows that are none, or an architecture without k.
    """

    def __init__(
        self,
        batches_of: Callable[[int], Batches],
        template: TrainConfig,
        *,
        epoch_rows: int,
        held_out: NDArray[Any],
        folder: str | Path,
        added_loss: AddedLoss | None = None,
    ) -> None:
        rows = np.asarray(held_out)
        if rows.ndim != 2 or len(rows) < 2 or epoch_rows < template.batch_size:
            raise InvalidArgument(
                f"held_out is [row, d_in] with two rows or more, and an epoch a batch or more; got shape "
                f"{list(rows.shape)} and {epoch_rows} rows in batches of {template.batch_size}"
            )
        if template.k is None:
            raise InvalidArgument(f"{template.architecture} has no k to vary; take topk, batchtopk or matryoshka")
        self._batches_of, self._template, self._epoch_rows = batches_of, template, epoch_rows
        self._held_out, self._folder, self._added_loss = rows, Path(folder), added_loss

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the outcome besides condition and seed."""
        config = self._template.to_dict()
        for name in ("k", "d_sae", "steps", "seed"):
            config.pop(name)
        added = self._added_loss
        return {
            "data_hash": self._batches_of(0).manifest["data_hash"],
            "held_out_hash": data_hash(self._held_out),
            "epoch_rows": self._epoch_rows,
            "config": config,
            "added_loss": None if added is None else {added.name: dict(added.note)},
        }

    def __call__(self, condition: Condition, seed: int) -> Trained:
        """Train one SAE. Raises InvalidArgument for no epochs: what is not trained leaves no folder."""
        if not condition.epochs:
            raise InvalidArgument("an untrained control leaves no SAE folder; take ArrayTrainer for it")
        steps = math.ceil(condition.epochs * self._epoch_rows / self._template.batch_size)
        config = replace(self._template, k=condition.k, d_sae=condition.d_sae, steps=steps, seed=seed)
        folder = self._folder / f"k{condition.k}-d{condition.d_sae}-e{condition.epochs}-s{seed}"
        done = train(self._batches_of(seed), config, folder, progress=False, added_loss=self._added_loss)
        scores = score_rows(done.sae, self._held_out)
        return Trained(folder, scores.usual.explained_variance, scores.usual.l0, scores.alive)
