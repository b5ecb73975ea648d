"""transformers' Trainer around an objective: only what learns is saved, and a killed run goes on from its checkpoint."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ...clients.progress import Bar
from ...protos.errors import FailedPrecondition
from ..circuits.circuit import Circuit
from .config import TuneConfig
from .examples import TokenExample, batch_of
from .objective import Objective

__all__ = ["CHECKPOINTS", "run_training"]

CHECKPOINTS = "checkpoints"
_WEIGHTS, _STATE, _DONE = "trained.safetensors", "objective.json", "trainer_state.json"


def run_training(objective: Objective, train: Sequence[TokenExample], folder: Path, bar: Bar) -> None:
    """Train to the last step. Raises FailedPrecondition for a checkpoint that cannot be read or a loss that diverges."""
    transformers: Any = import_module("transformers")
    torch: Any = import_module("torch")
    config, base = objective.config, objective.base
    root = folder / CHECKPOINTS
    start = _last_checkpoint(root)
    trainer_class: Any = _trainer_class(transformers, torch, objective)
    callback: Any = _callback_class(transformers, objective, bar)()
    with warnings.catch_warnings():
        # torch says so whenever there is no accelerator; nothing is pinned here.
        warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
        trainer: Any = trainer_class(
            model=base.model,
            args=_arguments(transformers, config, root),
            train_dataset=list(train),
            data_collator=partial(batch_of, device=config.device),
            callbacks=[callback],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.remove_callback(transformers.ProgressCallback)
        try:
            trainer.train(resume_from_checkpoint=None if start is None else str(start))
        except (OSError, KeyError, RuntimeError) as error:
            if start is not None and callback.steps == 0:
                raise FailedPrecondition(
                    f"the checkpoint {start} cannot be read ({error}); remove {root} to start anew"
                ) from error
            raise
        finally:
            base.model.eval()


def _arguments(transformers: Any, config: TuneConfig, root: Path) -> Any:
    often = max(1, -(-config.steps // (config.checkpoints + 1)))
    return transformers.TrainingArguments(
        output_dir=str(root),
        per_device_train_batch_size=config.batch_size,
        max_steps=config.steps,
        learning_rate=config.lr,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warm_up_steps,
        weight_decay=0.0,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_grad_norm=config.clip,
        optim="adamw_torch",
        seed=config.seed,
        data_seed=config.seed,
        save_strategy="steps" if config.checkpoints else "no",
        save_steps=often,
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=config.device == "cpu",
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,
    )


def _trainer_class(transformers: Any, torch: Any, objective: Objective) -> Any:
    files: Any = import_module("safetensors.torch")

    class ObjectiveTrainer(transformers.Trainer):
        """Its loss is the objective's; its checkpoints hold what learns."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            del model
            loss = objective(inputs)
            if not bool(torch.isfinite(loss.detach())):
                raise FailedPrecondition(
                    f"the loss is {float(loss.detach())} at step {objective.step + 1}; lower lr = {objective.config.lr:g}"
                )
            return (loss, {}) if return_outputs else loss

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            del state_dict
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            files.save_file(_learning(objective.base.model), folder / _WEIGHTS)
            state: dict[str, Any] = {"scales": objective.scales, "curves": objective.curves}
            if (relocation := objective.relocation) is not None:
                state |= {"circuit": relocation.circuit.to_json(), "drift": relocation.drift}
            (folder / _STATE).write_text(json.dumps(state))

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            del model
            folder = Path(resume_from_checkpoint)
            saved = files.load_file(folder / _WEIGHTS)
            own = _learning(objective.base.model)
            if set(saved) != set(own):
                raise KeyError(f"other weights than are trained here: {sorted(set(saved) ^ set(own))[:3]}")
            with torch.no_grad():
                for name, value in saved.items():
                    own[name].copy_(value)
            state = json.loads((folder / _STATE).read_text())
            objective.scales, objective.curves = dict(state["scales"]), list(state["curves"])
            if objective.relocation is not None and objective.config.relocalise_every:
                objective.relocation.drift = list(state["drift"])
                objective.confine(Circuit.from_json(state["circuit"]))

    return ObjectiveTrainer


def _callback_class(transformers: Any, objective: Objective, bar: Bar) -> Any:
    class Steps(transformers.TrainerCallback):
        """Tells the objective its step, keeps ReFT's rows orthonormal, and moves the bar."""

        steps = 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, control
            objective.step = int(state.global_step)
            objective.relocate(_.get("optimizer"))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, state, control
            if objective.reft is not None:
                objective.reft.retract()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, control
            self.steps += 1
            bar(int(state.global_step), objective.config.steps)

    return Steps


def _learning(model: Any) -> dict[str, Any]:
    """Name → parameter, of all that learn."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _last_checkpoint(root: Path) -> Path | None:
    """The last complete one: trainer_state.json is what Trainer writes last. Others are removed."""
    found: list[tuple[int, Path]] = []
    for folder in root.glob("checkpoint-*"):
        try:
            json.loads((folder / _DONE).read_text())
            found.append((int(folder.name.rsplit("-", 1)[1]), folder))
        except (OSError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
    return max(found)[1] if found else None
