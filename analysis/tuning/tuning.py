"""`tune`: fine-tuning of a checkpoint folder; the result is a variant, which any backend serves beside the base."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...clients import Variant
from ...clients.progress import progress_bar
from ...protos.errors import FailedPrecondition, InvalidArgument
from ...protos.model import ModelInfo
from ...protos.variants.manifest import Base as BaseModel
from ..circuits.circuit import Circuit
from .adapters import Adapter, attach, exact_zeros
from .base import Base, load_base
from .circuit_mask import anywhere, circuit_parts, outside_of
from .config import TuneConfig
from .curves import TuneCurves
from .examples import TokenExample, TrainExample, examples_hash, to_tokens
from .objective import Objective
from .pushes import Push, Pushes
from .reft import attach_reft
from .relocation import Relocation
from .result import deltas_of, hooks_of, manifest_of
from .run_file import TuneRun
from .trainer import CHECKPOINTS, run_training

__all__ = ["Tuned", "read_tuned", "tune"]

VARIANT, CURVES, CIRCUIT, DRIFT = "variant", "curves.json", "circuit.json", "drift.json"
_LOCK = ".lock"


@dataclass(frozen=True, slots=True, eq=False)
class Tuned:
    """A finished run."""

    variant: Variant
    curves: TuneCurves
    run: TuneRun
    folder: Path
    """Holds variant/ (a PEFT adapter where it has no hooks), curves.json and run.json; of a circuit also circuit.json, whose

    weights it is that differ from the base's, and drift.json."""

    @property
    def circuit(self) -> Circuit | None:
        """What was tuned: the given circuit, or where it was last moved to. None where it is not found again: other methods,

        whole blocks, units told apart by position, drift_examples=0.
        """
        path = self.folder / CIRCUIT
        return Circuit.load(path) if path.is_file() else None

    @property
    def drift(self) -> tuple[Mapping[str, float], ...]:
        """How far the circuit was from what it was at first, each time that it was looked for: distance (1 − Jaccard) and

        spearman against the circuit found in the same way before training, `faithfulness` of the mask then in use.
        """
        path = self.folder / DRIFT
        return tuple(json.loads(path.read_text())) if path.is_file() else ()


def tune(
    base_folder: str | Path,
    train: Sequence[TrainExample],
    out: str | Path,
    config: TuneConfig | None = None,
    *,
    circuit: Circuit | None = None,
    general: Sequence[TrainExample | str] = (),
    pushes: Sequence[Push] = (),
    base: ModelInfo | BaseModel | None = None,
    name: str = "",
    progress: bool = True,
    resume: bool = True,
) -> Tuned:
    """Tune the model in `base_folder` on examples; `out` becomes the run's folder. One process of torch, no server.

    `circuit`: of neurons, heads or whole blocks: what method "circuit" may change, and what the loss "coherence" keeps
    the rest of. `general`: texts of the loss "preserve"; with method "rmu" or "breakers" those that are retained, `train`
    being what is to be forgotten. `pushes`: neurons that method "steered" pushes while it trains, and no more afterwards.
    `base`: `client.describe()` of the served model, so that the variant is bound to its hash; without it a server binds
    it to whatever it is loaded on. A killed run goes on from its last checkpoint and ends equal within 1e-6 in float32;
    a finished one is only read.
    Raises InvalidArgument for what does not fit together, FailedPrecondition for a folder that holds another run or is in
    use, and a loss that diverges.
    """
    config, folder = config or TuneConfig(), Path(out)
    texts = [TrainExample("", text) if isinstance(text, str) else text for text in general]
    _require(config, train, circuit, texts, pushes)
    bound = BaseModel.of(base) if isinstance(base, ModelInfo) else base or BaseModel()
    run = TuneRun(
        config,
        {
            "sha256": examples_hash(train),
            "n": len(train),
            "general_sha256": examples_hash(texts),
            "n_general": len(texts),
        },
        {"config_sha256": _config_hash(Path(base_folder)), "model_hash": bound.model_hash},
        {} if circuit is None else {"sha256": _circuit_hash(circuit), "units": len(circuit)},
        tuple(push.to_dict() for push in pushes),
    )
    with _locked(folder):
        earlier = _earlier(run, folder, resume=resume)
        if earlier is not None and earlier.status == "finished":
            return read_tuned(folder)
        run = run.started(earlier)
        run.write(folder)
        since = time.perf_counter()
        with progress_bar(f"tuning ({config.method})", "steps", show=progress) as bar:
            made = _trained(
                load_base(base_folder, device=config.device), train, texts, circuit, pushes, config, folder, bar
            )
        if not made[0] and not made[1].hooks:
            raise FailedPrecondition(f"nothing was learned: every weight stands where it began (lr {config.lr:g})")
        variant = Variant(made[0], made[1], manifest_of(config, bound, run, name, made[3]))
        shutil.rmtree(folder / VARIANT, ignore_errors=True)
        variant.save(folder / VARIANT)
        made[2].save(folder / CURVES)
        seconds = time.perf_counter() - since
        replace(run, status="finished", steps=config.steps, seconds=seconds, variant_hash=variant.hash).write(folder)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return read_tuned(folder)


def read_tuned(folder: str | Path) -> Tuned:
    """A finished run's folder. Raises FailedPrecondition when there is none, or it is not finished."""
    folder = Path(folder)
    run = TuneRun.read(folder)
    if run is None or run.status != "finished":
        said = "holds no tuning run" if run is None else "holds a run that is not finished"
        raise FailedPrecondition(f"{folder} {said}; call tune again to end it")
    return Tuned(Variant.load(folder / VARIANT), TuneCurves.load(folder / CURVES), run, folder)


def _trained(
    base: Base,
    train: Sequence[TrainExample],
    general: Sequence[TrainExample],
    circuit: Circuit | None,
    pushes: Sequence[Push],
    config: TuneConfig,
    folder: Path,
    bar: Any,
) -> tuple[dict[str, Any], Any, TuneCurves, dict[str, Any]]:
    """Deltas, plan, curves and metrics of a run."""
    examples = [to_tokens(base.tokenizer, example) for example in train]
    _require_fit(config, examples)
    objective = prepared(base, config, circuit=circuit, general=general, pushes=pushes)
    objective.relocation = _relocation(base, config, circuit, examples)
    run_training(objective, examples, folder, bar)
    if objective.pushes is not None:
        objective.pushes.remove()
    adapter = objective.adapter
    if adapter is not None and not exact_zeros(adapter):
        raise FailedPrecondition("weights outside the circuit have changed; this is a fault of probewire: report it")
    last = {f"final_{key}": value for key, value in objective.curves[-1].items()}
    if objective.relocation is not None:
        objective.relocation.look(config.steps)
        found = objective.relocation.drift[-1]
        last |= {f"drift_{key}": value for key, value in found.items() if key != "step"}
        (folder / DRIFT).write_text(json.dumps(objective.relocation.drift, allow_nan=False))
        objective.relocation.circuit.save(folder / CIRCUIT)
    if adapter is not None:
        last["trainable"] = adapter.trainable
    return deltas_of(objective), hooks_of(objective), TuneCurves(tuple(objective.curves)), last


def _relocation(
    base: Base, config: TuneConfig, circuit: Circuit | None, examples: Sequence[TokenExample]
) -> Relocation | None:
    """Of a circuit's run: what says how far the circuit drifts, and moves the mask. None where there is nothing to say."""
    if circuit is None or config.method != "circuit" or not config.drift_examples:
        return None
    every = max(1, len(examples) // config.drift_examples)
    made = Relocation(base, circuit, examples[::every][: config.drift_examples])
    if not config.relocalise_every and not made.possible:
        return None  # whole blocks, or positions: it is not found again in training, and not told to be
    made.begin()
    return made


def prepared(
    base: Base,
    config: TuneConfig,
    *,
    circuit: Circuit | None = None,
    general: Sequence[TrainExample] = (),
    pushes: Sequence[Push] = (),
) -> Objective:
    """The model with what learns attached, and its loss; nothing has been trained yet."""
    texts = [to_tokens(base.tokenizer, example) for example in general]
    objective = Objective(base, config, texts)
    if circuit is not None:
        objective.outside = outside_of(base, circuit)
    if config.method == "reft":
        objective.reft = attach_reft(base, config)
        return objective
    objective.adapter = _adapter(base, config, circuit)
    if pushes:
        objective.pushes = Pushes.on_model(base, pushes)
    return objective


def _adapter(base: Base, config: TuneConfig, circuit: Circuit | None) -> Adapter:
    weights = base.expand(config.weights)
    if config.method == "rmu":
        top = base.layer(config.layers[0])
        return attach(base, config, [f"w_down.{layer}" for layer in range(max(0, top - 2), top + 1)], {})
    if config.method == "breakers":
        top = max(base.layer(index) for index in config.layers)
        names = [name for name in weights if name.rsplit(".", 1)[-1].isdigit() and int(name.rsplit(".", 1)[1]) <= top]
        return attach(base, config, names, {})
    if config.method == "circuit" and circuit is not None:
        owned = circuit_parts(base, circuit)
        if config.relocalise_every:
            owned = anywhere(base, circuit) | owned
        parts = {name: part for name, part in owned.items() if name in weights}
        if not any(part.index or part.side == "all" for part in parts.values()):
            raise InvalidArgument(f"the circuit touches none of the weights {', '.join(config.weights)}; name others")
        return attach(base, config, tuple(parts), parts)
    return attach(base, config, weights, {})


def _require(
    config: TuneConfig,
    train: Sequence[TrainExample],
    circuit: Circuit | None,
    general: Sequence[TrainExample],
    pushes: Sequence[Push],
) -> None:
    """Raises InvalidArgument before anything is loaded."""
    method = config.method
    if not train:
        raise InvalidArgument("there is nothing to train on; give examples")
    if (method == "steered") != bool(pushes):
        raise InvalidArgument(
            f"pushes and method 'steered' go together; got {len(pushes)} pushes and method {method!r}"
        )
    if method == "circuit" and circuit is None:
        raise InvalidArgument("method 'circuit' needs a circuit; method 'lora' tunes whole weights")
    if method in ("rmu", "breakers") and not general:
        raise InvalidArgument(f"method {method!r} needs general texts to retain; give `general`")
    if method == "rmu" and len(config.layers) != 1:
        raise InvalidArgument(f"method 'rmu' moves one layer's rows; give layers=(l,), got {config.layers}")
    if method == "breakers" and not config.layers:
        raise InvalidArgument("method 'breakers' needs the layers whose rows are turned; give layers=(10, 20) or so")
    if method not in ("rmu", "breakers"):
        config.weighted(circuit=circuit is not None, general=bool(general))


def _require_fit(config: TuneConfig, examples: Sequence[TokenExample]) -> None:
    need = sum(config.positions)
    if config.method == "reft" and (short := min(e.answer_at or len(e.ids) for e in examples)) < need:
        raise InvalidArgument(
            f"a prompt has {short} tokens, and ReFT changes its first {config.positions[0]} and last {config.positions[1]}; "
            "give longer prompts or fewer positions"
        )
    if config.method not in ("rmu", "breakers") and any(len(e.ids) <= max(1, e.answer_at) for e in examples):
        raise InvalidArgument("an example has no answer to learn; give each one")


def _config_hash(folder: Path) -> str:
    path = folder / "config.json"
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _circuit_hash(circuit: Circuit) -> str:
    units = sorted(unit.name for unit in circuit.units)
    return sha256(json.dumps(units).encode()).hexdigest()


def _earlier(run: TuneRun, folder: Path, *, resume: bool) -> TuneRun | None:
    """The run that the folder holds, once it is known to be this one. Raises FailedPrecondition."""
    earlier = TuneRun.read(folder)
    if earlier is None:
        found = sorted(
            path.name for path in folder.iterdir() if path.name not in (_LOCK,) and path.suffix != ".writing"
        )
        if found:
            raise FailedPrecondition(
                f"{folder} holds something else than a tuning run ({', '.join(found[:5])}); give an empty one"
            )
        return None
    if not resume:
        raise FailedPrecondition(f"{folder} holds a run; give another folder, or resume it")
    earlier.require_same(run, folder)
    return earlier


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """One training a folder at a time; the lock goes with its process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"cannot write to {folder}: {error}") from None
    try:
        with FileLock(folder / _LOCK, blocking=False):
            yield
    except Timeout:
        raise FailedPrecondition(f"another process tunes into {folder}; wait for it, or give another folder") from None
