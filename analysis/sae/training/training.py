"""Training SAEs on batches with sae-lens's own trainer: curves, checkpoints, and resuming to the very bit.

sae-lens's `SAETrainer.fit` saves no state of the data and no generator, counts its steps after it has saved a
checkpoint, and writes in place; so `fit` here drives the trainers by their public `step`, as sae-lens's own
`MultiSAETrainer` does. That class itself takes one config of lr and steps for all, and resumes no better.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ....clients.progress import Bar, progress_bar
from ....protos.errors import FailedPrecondition, InvalidArgument
from ..data.stream import Stream
from ..model.configs import TrainConfig
from ..model.loaded import LoadedSae, load
from .checkpoints import FOLDER, discard, latest_checkpoint, save_checkpoint
from .curves import Curves
from .run_manifest import RunManifest
from .training_run import AddedLoss, TrainingRun

if TYPE_CHECKING:
    from ..data.batches import Batches

__all__ = ["AddedLoss", "TrainedSae", "fit", "read_trained", "train"]

_LOCK = ".lock"


@dataclass(frozen=True, slots=True, eq=False)
class TrainedSae:
    """A finished run."""

    folder: Path
    """An SAE as sae-lens saves it, with run.json, curves.json and curves.png beside it."""
    sae: LoadedSae
    """As loaded from there: BatchTopK and Matryoshka have become JumpReLU."""
    curves: Curves
    run: RunManifest


def train(
    batches: Batches,
    config: TrainConfig,
    folder: str | Path,
    *,
    progress: bool = True,
    resume: bool = True,
    keep_checkpoints: bool = False,
    added_loss: AddedLoss | None = None,
) -> TrainedSae:
    """Train one SAE; `folder` becomes a sae-lens SAE folder.

    A run that was killed at any point goes on from its last checkpoint; on the CPU, with as many threads and the same
    libraries, its final weights are to the bit those of a run that was not. A finished one is only loaded. `resume=False`: a folder with a run in it is refused instead.
    `keep_checkpoints`: all are kept, under folder/checkpoints; else the last one only, and none after the end.
    `added_loss`: a further term of the loss.
    Raises InvalidArgument for data that is NaN, infinite, or of another width or batch size than it says, and
    FailedPrecondition for a folder that holds another run or is in use, data that ends early, or a loss that diverges.
    """
    folder = Path(folder)
    run = TrainingRun(config, batches.d_in, batches.manifest, folder, added_loss)
    fit(batches, {"sae": run}, folder, progress=progress, resume=resume, keep_checkpoints=keep_checkpoints)
    return read_trained(folder)


def read_trained(folder: str | Path) -> TrainedSae:
    """A finished run's folder. Raises FailedPrecondition when there is none, or it is not finished."""
    folder = Path(folder)
    run = RunManifest.read(folder)
    if run is None or run.status != "finished":
        said = "holds no training run" if run is None else f"holds a run that stands at step {run.steps}"
        raise FailedPrecondition(f"{folder} {said}; train it to its end")
    return TrainedSae(folder, load(folder), Curves.read(folder / "curves.json"), run)


def fit(
    batches: Batches,
    runs: Mapping[str, TrainingRun],
    root: Path,
    *,
    progress: bool = True,
    resume: bool = True,
    keep_checkpoints: bool = False,
) -> None:
    """Train all that are not finished, a step each a batch, with their checkpoints under `root`. Raises as `train`."""
    sizes = {run.config.batch_size for run in runs.values()}
    if len(sizes) != 1:
        raise InvalidArgument(f"SAEs on one stream have one batch_size, got {sorted(sizes)}")
    stream = Stream(batches, sizes.pop())
    with _locked(root):
        todo = _unfinished(runs, root, resume=resume)
        if not todo:
            return
        _start(todo, runs, stream, root)
        label = "training" if len(todo) == 1 else f"training {len(todo)} SAEs"
        with progress_bar(label, "tokens", show=progress) as bar:
            _loop(stream, todo, root, bar, keep_checkpoints=keep_checkpoints)
        if not keep_checkpoints:
            discard(root / FOLDER)


def _unfinished(runs: Mapping[str, TrainingRun], root: Path, *, resume: bool) -> dict[str, TrainingRun]:
    """Those that are to be trained, once every folder is known to be empty or of the same run."""
    todo: dict[str, TrainingRun] = {}
    for name, run in runs.items():
        earlier = RunManifest.read(run.folder)
        if earlier is None:
            _require_empty(run.folder, root)
        elif not resume:
            raise FailedPrecondition(f"{run.folder} holds a run; give another folder, or resume it")
        else:
            earlier.require_same(run.manifest, run.folder)
        if earlier is None or earlier.status != "finished":
            todo[name] = run
    return todo


def _start(todo: Mapping[str, TrainingRun], runs: Mapping[str, TrainingRun], stream: Stream, root: Path) -> None:
    """Bring all to the last checkpoint, or to the step before the first."""
    checkpoint = latest_checkpoint(root)
    if checkpoint is not None:
        unknown = sorted(set(todo) - set(checkpoint.names)) + sorted(set(checkpoint.names) - set(runs))
        if unknown:
            raise FailedPrecondition(
                f"the checkpoint {checkpoint.folder} is of {', '.join(checkpoint.names)}, and {', '.join(unknown)} is "
                "on one side only; resume with the same SAEs, or give another folder"
            )
        for name, run in todo.items():
            checkpoint.restore(name, run)
        stream.resume(checkpoint.step, checkpoint.data)
    else:
        _normalise(todo, stream)
    for run in todo.values():
        run.folder.mkdir(parents=True, exist_ok=True)
        run.start_session(RunManifest.read(run.folder))


def _normalise(todo: Mapping[str, TrainingRun], stream: Stream) -> None:
    for run in todo.values():
        if run.config.normalisation != "none":
            run.normalise(stream.peek(run.config.normalisation_batches))


def _loop(stream: Stream, todo: Mapping[str, TrainingRun], root: Path, bar: Bar, *, keep_checkpoints: bool) -> None:
    total = max(run.config.steps for run in todo.values())
    interval = math.ceil(total / (1 + max(run.config.checkpoints for run in todo.values())))
    size = next(iter(todo.values())).config.batch_size
    since = time.perf_counter()
    active = {name: run for name, run in todo.items() if not run.done}
    step = min(run.steps for run in active.values())
    while active:
        batch = stream.take()
        for run in active.values():
            run.step(batch)
        step += 1
        bar(step * size, total * size)
        due = step % interval == 0 and step < total
        if due or any(run.done for run in active.values()):
            now = time.perf_counter()
            for run in active.values():
                run.spend(now - since)
            since = now
            active = _finish_done(active)
        if due:
            save_checkpoint(root, step, active, stream.state, keep_all=keep_checkpoints)
            for run in active.values():
                run.write_manifest()


def _finish_done(active: Mapping[str, TrainingRun]) -> dict[str, TrainingRun]:
    """Those that are not done; the others' folders become SAEs."""
    for run in active.values():
        if run.done:
            run.finish()
    return {name: run for name, run in active.items() if not run.done}


def _require_empty(folder: Path, root: Path) -> None:
    """Nothing of anyone else's is written over."""
    allowed = {_LOCK, FOLDER} if folder == root else set[str]()
    found = sorted(path.name for path in folder.iterdir() if path.name not in allowed) if folder.is_dir() else []
    if found and not all(name.endswith(".writing") for name in found):
        raise FailedPrecondition(
            f"{folder} holds something else than a training run ({', '.join(found[:5])}); give a new or empty folder"
        )


@contextmanager
def _locked(root: Path) -> Generator[None]:
    """One training a folder at a time; the lock goes with its process, however that ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"cannot write to {root}: {error}") from None
    try:
        with FileLock(root / _LOCK, blocking=False):
            yield
    except Timeout:
        raise FailedPrecondition(f"another process trains into {root}; wait for it, or give another folder") from None
