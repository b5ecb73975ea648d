"""Many short trainings over one array in memory, for sweeps: sae-lens's trainer, nothing on the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from ..data.batches import ArrayBatches, data_hash
from ..model.configs import TrainConfig, new_sae
from ..scoring.scores import ExplainedVariance
from ..seeds.cells import Condition, Trained
from .training_run import AddedLoss, TrainingRun

__all__ = ["ArrayTrainer"]

_EVALUATED_ROWS = 4096
"""Rows that are encoded at once."""


class ArrayTrainer:
    """A `TrainOne` over activations [row, d_in]: trains on the first rows and scores on the last, which it never sees.

    `template`: everything that the sweep does not set: architecture, batch size, rate of learning. Its k, d_sae, steps
    and seed give way to the condition's; k must mean something to its architecture.
    `held_out`: share of rows for explained variance, the last ones, so that documents are not torn where rows keep
    their order. Rows are scaled to a mean norm of √d_in, which moves neither directions nor explained variance; massive
    activations count as they are, so give rows without them. `added_loss`: a further term, such as `Consistency`.
    Raises InvalidArgument for rows that are too few, not finite, or all alike.
    """

    def __init__(
        self,
        activations: NDArray[Any],
        template: TrainConfig,
        *,
        held_out: float = 0.1,
        added_loss: AddedLoss | None = None,
    ) -> None:
        rows = np.asarray(activations)
        if rows.ndim != 2 or not 0 < held_out < 1:
            raise InvalidArgument(
                f"activations are [row, d_in] and held_out a share between 0 and 1, got shape {list(rows.shape)} and "
                f"{held_out}"
            )
        rows = rows.astype(np.float32)
        if not np.isfinite(rows).all():
            raise InvalidArgument("activations hold NaN or infinity; drop those rows first")
        if template.k is None:
            raise InvalidArgument(f"{template.architecture} has no k to vary; take topk, batchtopk or matryoshka")
        if template.normalisation != "none":
            raise InvalidArgument(f"rows are scaled here already; leave normalisation {template.normalisation!r} out")
        n_test = max(1, round(held_out * len(rows)))
        train, test = rows[: len(rows) - n_test], rows[len(rows) - n_test :]
        if len(train) < template.batch_size or n_test < 2:
            raise InvalidArgument(
                f"{len(rows)} rows leave {len(train)} to train on and {n_test} to score; give more, or a batch_size "
                f"below {template.batch_size}"
            )
        norm = float(np.linalg.norm(train, axis=1).mean(dtype=np.float64))
        if not norm > 0 or not (test != test[0]).any():
            raise InvalidArgument("activations are all zero or all alike; there is nothing to learn")
        scale = np.float32(math.sqrt(rows.shape[1]) / norm)
        self._train, self._test = train * scale, test * scale
        self._template, self._added_loss = template, added_loss
        self._data = {"data_hash": data_hash(rows), "rows": len(rows), "d_in": rows.shape[1], "held_out": held_out}

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the outcome besides condition and seed."""
        config = self._template.to_dict()
        for name in ("k", "d_sae", "steps", "seed"):
            config.pop(name)
        added = self._added_loss
        return {**self._data, "config": config, "added_loss": None if added is None else {added.name: dict(added.note)}}

    def steps(self, epochs: int) -> int:
        """Optimizer steps of so many epochs."""
        return math.ceil(epochs * len(self._train) / self._template.batch_size)

    def __call__(self, condition: Condition, seed: int) -> Trained:
        """Train one SAE; with no epochs it stays as it was initialised. Raises FailedPrecondition when it diverges."""
        steps = max(1, self.steps(condition.epochs))
        config = replace(self._template, k=condition.k, d_sae=condition.d_sae, steps=steps, seed=seed, log_every=steps)
        if not condition.epochs:
            return self._scored(new_sae(config, self._train.shape[1]))
        batches = ArrayBatches(self._train, config.batch_size, seed)
        # A run writes into its folder only when it is told to, which it is not.
        run = TrainingRun(config, batches.d_in, batches.manifest, Path(), self._added_loss)
        while not run.done:
            run.step(next(batches))
        return self._scored(run.sae)

    def _scored(self, sae: Any) -> Trained:
        torch: Any = import_module("torch")
        variance, fired, active = ExplainedVariance(), np.zeros(int(sae.cfg.d_sae), dtype=bool), 0
        sae.eval()
        with torch.no_grad():
            for start in range(0, len(self._test), _EVALUATED_ROWS):
                rows = self._test[start : start + _EVALUATED_ROWS]
                latents = sae.encode(torch.from_numpy(rows).to(sae.W_dec))
                variance.add(rows, sae.decode(latents).float().cpu().numpy())
                on = latents.cpu().numpy() != 0
                fired |= on.any(axis=0)
                active += int(on.sum())
            decoder = sae.W_dec.detach().float().cpu().numpy().copy()
        return Trained(decoder, variance.value, active / len(self._test), float(fired.mean()))
