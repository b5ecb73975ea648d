"""Several SAEs on one stream of batches: the data is read, or the model run, once for all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ....protos.errors import InvalidArgument
from ..model.configs import TrainConfig
from .curves import draw_curves
from .training import TrainedSae, fit, read_trained
from .training_run import TrainingRun

if TYPE_CHECKING:
    from ..data.batches import Batches

__all__ = ["train_several"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def train_several(
    batches: Batches,
    configs: Mapping[str, TrainConfig],
    folder: str | Path,
    *,
    progress: bool = True,
    resume: bool = True,
    keep_checkpoints: bool = False,
) -> dict[str, TrainedSae]:
    """Train an SAE a config, each into folder/NAME; gives them by name. All take the same `batch_size`.

    Each is to the bit what `train` alone makes of the same batches: it has a generator of its own, its normalisation is
    estimated on the first batches without taking them from the stream, and no state is shared. Architectures, sizes,
    learning rates and steps may differ. Checkpoints hold all of them and the data after the same step.
    folder/curves.png compares them. Raises as `train`, and InvalidArgument for names that are no folder's.
    """
    root = Path(folder)
    if not configs:
        raise InvalidArgument("there is no config; give at least one")
    wrong = [name for name in configs if not _NAME.fullmatch(name) or name == "checkpoints"]
    if wrong:
        raise InvalidArgument(
            f"names become folders, so they are letters, digits, '.', '_' and '-' (not 'checkpoints'); got {wrong}"
        )
    runs = {name: TrainingRun(config, batches.d_in, batches.manifest, root / name) for name, config in configs.items()}
    fit(batches, runs, root, progress=progress, resume=resume, keep_checkpoints=keep_checkpoints)
    trained = {name: read_trained(root / name) for name in configs}
    _draw(trained, root)
    return trained


def _draw(trained: Mapping[str, TrainedSae], root: Path) -> None:
    site = next(iter(trained.values())).run.data.get("site")
    draw_curves(
        {name: one.curves for name, one in trained.items()},
        what=f"{len(trained)} SAEs on one stream" + (f" of {site}" if site else ""),
        path=root / "curves.png",
    )
