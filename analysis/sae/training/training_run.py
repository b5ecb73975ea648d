"""One SAE in training: sae-lens's trainer, with a generator, curves and a manifest of its own."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from ....protos.errors import FailedPrecondition, InvalidArgument
from ..model.configs import TrainConfig, new_sae
from .checkpoints import move_in, write_json
from .curves import Curves
from .run_manifest import RunManifest

__all__ = ["AddedLoss", "Manager", "TrainingRun"]

_OWN_STATE, _GENERATOR, _MANAGER = "run_state.json", "generator.safetensors", "manager.safetensors"
_FINAL = ("sae_weights.safetensors", "sparsity.safetensors", "curves.json", "curves.png", "cfg.json")
"""In the order in which they get their names; cfg.json last, as without it a folder is no SAE."""
_LONG = 32
"""Items beyond which a list of the data's manifest is not copied into every run."""


class AddedLoss(Protocol):
    """A further term of the loss, such as one that keeps dictionaries alike."""

    @property
    def name(self) -> str:
        """Of its curve."""
        ...

    @property
    def note(self) -> Mapping[str, Any]:
        """What decides its value, JSON-able: kept in run.json, and the same when the run goes on."""
        ...

    def __call__(self, sae: Any, output: Any) -> Any:
        """A scalar tensor, from sae-lens's training SAE and its TrainStepOutput."""
        ...


@runtime_checkable
class Manager(AddedLoss, Protocol):
    """An added loss that also has a hand in the latents: changes weights between steps, gates them, keeps a state."""

    def before(self, sae: Any) -> None:
        """Before the forward pass of a step; weights may be changed here."""
        ...

    def finish(self, sae: Any) -> None:
        """After the last step: the SAE becomes one that encodes by itself."""
        ...

    def state(self) -> dict[str, Any]:
        """Tensors by name: what it needs to go on."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """As `state` gave it."""
        ...


class TrainingRun:
    """What `fit` drives. Its weights depend on its config and the batches, never on what is trained beside it."""

    def __init__(
        self, config: TrainConfig, d_in: int, data: Mapping[str, Any], folder: Path, added: AddedLoss | None = None
    ) -> None:
        """Raises InvalidArgument when the config is none for this data."""
        self._torch: Any = import_module("torch")
        self.config, self.folder = config, folder
        self.sae: Any = new_sae(config, d_in, _metadata(data))
        note = {} if added is None else {"name": added.name, **added.note}
        self.manifest = RunManifest(config, d_in, _brief(data), added_loss=note)
        self._manager = added if isinstance(added, Manager) else None
        if added is not None:
            _add_loss(self.sae, added)
        self.trainer: Any = import_module("sae_lens.training.sae_trainer").SAETrainer(
            cfg=config.trainer_config(), sae=self.sae, data_provider=iter(())
        )
        self.sae.activation_scaler = self.trainer.activation_scaler  # for managers that read rows of their own
        self.curves = Curves()
        self._generator: Any = self._torch.Generator().manual_seed(config.seed).get_state()

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.trainer.n_training_steps)

    @property
    def done(self) -> bool:
        """Whether there are none left."""
        return self.steps >= self.config.steps

    def normalise(self, batches: Sequence[Any]) -> None:
        """Estimate what the config's normalisation needs. Raises InvalidArgument for data that has none."""
        estimate = {"d_in": self.manifest.d_in, "data_provider": iter(batches)}
        scaler = self.trainer.activation_scaler
        if self.config.normalisation == "expected_average_only_in":
            if not any(bool(batch.any()) for batch in batches):
                raise InvalidArgument("the data is 0 throughout, so its norm cannot be normalised")
            scaler.estimate_scaling_factor(**estimate, n_batches_for_norm_estimate=len(batches))
        elif self.config.normalisation == "covariance_whitening":
            scaler.estimate_whitening(**estimate, n_batches_for_norm_estimate=len(batches))

    def step(self, batch: Any) -> None:
        """One step on a batch [batch_size, d_in]. Raises FailedPrecondition when the loss is no longer finite."""
        trainer = self.trainer
        trainer.maybe_reset_sparsity()
        lr = float(trainer.optimizer.param_groups[0]["lr"])
        coefficients = dict(trainer.get_coefficients())
        with self._own_generator():
            output = trainer.step(batch)
        if not math.isfinite(float(output.loss.detach())):
            raise FailedPrecondition(
                f"the loss is {float(output.loss.detach())} at step {self.steps}; lower lr = {self.config.lr:g}, or give "
                "more lr_warm_up_steps"
            )
        trainer.n_training_steps += 1  # sae-lens saves a checkpoint before this, and is one step behind after it
        if self.steps == 1 or self.steps % self.config.log_interval == 0 or self.done:
            self._log(output, lr, coefficients)

    def _log(self, output: Any, lr: float, coefficients: Mapping[str, float]) -> None:
        with self._torch.no_grad():
            found = self.trainer.build_train_step_log_dict(output, self.trainer.n_training_samples)
        parts = [name.removeprefix("losses/") for name in found if name.startswith("losses/")]
        # Before one window has passed nothing can have been silent for a window.
        known = self.steps > self.config.window
        self.curves.add(
            {
                "step": self.steps,
                "samples": self.trainer.n_training_samples,
                "loss": found["losses/overall_loss"],
                "l0": found["metrics/l0"],
                "explained_variance": found["metrics/explained_variance"],
                "dead": found["sparsity/dead_features"] / self.config.d_sae if known else None,
                "lr": lr,
                **{f"loss/{name}": found[f"losses/{name}"] for name in parts if name != "overall_loss"},
                **{f"coefficient/{name}": value for name, value in coefficients.items()},
            }
        )

    @contextmanager
    def _own_generator(self) -> Generator[None]:
        """torch's global CPU generator is this SAE's within, and as before afterwards."""
        before = self._torch.get_rng_state()
        self._torch.set_rng_state(self._generator)
        try:
            yield
        finally:
            self._generator = self._torch.get_rng_state()
            self._torch.set_rng_state(before)

    def save_state(self, folder: Path) -> None:
        """sae-lens's own checkpoint (weights, Adam, schedules, activation scaler, firing counts), and what it lacks."""
        self.trainer.save_checkpoint(checkpoint_name=folder.name, base_path=folder.parent)
        save_file = import_module("safetensors.torch").save_file
        save_file({"cpu": self._generator}, folder / _GENERATOR)
        if self._manager is not None:
            save_file(self._manager.state(), folder / _MANAGER)
        state = {"curves": self.curves.to_dict(), "wall_seconds": self.manifest.wall_seconds}
        (folder / _OWN_STATE).write_text(json.dumps(state, allow_nan=False))

    def load_state(self, folder: Path) -> None:
        """As `save_state` left it."""
        self.trainer.load_trainer_state(folder)
        self.sae.load_weights_from_checkpoint(folder)
        load_file = import_module("safetensors.torch").load_file
        self._generator = load_file(folder / _GENERATOR)["cpu"]
        if self._manager is not None:
            self._manager.load(load_file(folder / _MANAGER))
        state = json.loads((folder / _OWN_STATE).read_text())
        self.curves = Curves(state["curves"])
        self.manifest = replace(self.manifest, wall_seconds=float(state["wall_seconds"]))

    def spend(self, seconds: float) -> None:
        """Time that has passed, of which some was its own."""
        self.manifest = replace(self.manifest, wall_seconds=self.manifest.wall_seconds + seconds)

    def start_session(self, earlier: RunManifest | None) -> None:
        """Note in run.json that it is started, or goes on, now and here."""
        sessions = () if earlier is None else earlier.sessions
        self.manifest = replace(self.manifest, sessions=sessions).with_session(self.steps)
        self.write_manifest()

    def write_manifest(self) -> None:
        """Where it stands, into its folder."""
        self.manifest = replace(self.manifest, steps=self.steps, final=self.curves.last)
        self.manifest.write(self.folder)

    def finish(self) -> None:
        """Fold the normalisation into the weights, and make the folder an SAE as sae-lens saves it."""
        if self._manager is not None:
            self._manager.finish(self.sae)
        self._fold()
        self.trainer.set_final_sae_metadata()
        # sae-lens notes a training version in SAEs that were never trained too.
        self.sae.cfg.metadata.trained = True
        self.sae.cfg.metadata.training_steps = self.steps
        beside = self.folder / ".final"
        shutil.rmtree(beside, ignore_errors=True)
        self.sae.cfg.device = "cpu"  # what is saved is for any machine
        self.sae.save_inference_model(beside)
        save_file = import_module("safetensors.torch").save_file
        save_file({"sparsity": self.trainer.log_feature_sparsity}, beside / "sparsity.safetensors")
        write_json(beside / "curves.json", self.curves.to_dict())
        self.curves.draw(what=_title(self.manifest), how=_subtitle(self.manifest), path=beside / "curves.png")
        with (beside / "sae_weights.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        for name in _FINAL:
            shutil.copymode(beside / "cfg.json", beside / name)  # safetensors lets nobody else read what it writes
            move_in(beside / name, self.folder / name)
        beside.rmdir()
        self.manifest = replace(self.manifest, status="finished", weights_sha256=digest)
        self.write_manifest()

    def _fold(self) -> None:
        """As SAETrainer.fit does at its end."""
        scaler = self.trainer.activation_scaler
        if scaler.scaling_factor is not None:
            self.sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
            scaler.scaling_factor = None
        if scaler.whitening is not None:
            self.sae.fold_activation_whitening(
                mean=scaler.whitening.mean,
                whitening_matrix=scaler.whitening.matrix,
                unwhitening_matrix=scaler.whitening.inverse_matrix,
            )
            scaler.whitening = None


def _metadata(data: Mapping[str, Any]) -> dict[str, Any]:
    """What sae-lens keeps in cfg.json about what the SAE reads: its names for site and model, and the hashes."""
    names = {"hook_name": "site", "model_name": "model", "model_hash": "model_hash", "data_hash": "data_hash"}
    return {name: data[key] for name, key in names.items() if data.get(key)}


def _brief(value: Any) -> Any:
    """A manifest without its long lists (a store's shards, its mean): the data's hash stands for them."""
    if isinstance(value, Mapping):
        return {name: _brief(item) for name, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[Any]", value)
        return [_brief(item) for item in items] if len(items) <= _LONG else f"{len(items)} items"
    return value


def _add_loss(sae: Any, added: AddedLoss) -> None:
    """Have the SAE's training forward pass count one more term."""
    forward = sae.training_forward_pass

    def with_added(step_input: Any) -> Any:
        if isinstance(added, Manager):
            added.before(sae)
        output = forward(step_input)
        term = added(sae, output)
        output.losses[added.name] = term
        output.loss = output.loss + term
        return output

    sae.training_forward_pass = with_added


def _title(run: RunManifest) -> str:
    site = run.data.get("site")
    return f"Training of an SAE on {site}" if site else "Training of an SAE"


def _subtitle(run: RunManifest) -> str:
    config = run.config
    sparsity = "" if config.k is None else f", k {config.k:g}"
    return (
        f"{config.architecture}, {run.d_in} → {config.d_sae} latents{sparsity}; {config.steps:,} steps of "
        f"{config.batch_size:,} rows, seed {config.seed}"
    )
