"""Training: sae-lens's own results, the same bits after any interruption, and refusals that say why."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.sae.data.batches import ArrayBatches
from probewire.analysis.sae.data.live import LiveBatches
from probewire.analysis.sae.data.rows import Rows
from probewire.analysis.sae.data.store import ActivationStore, StoreWriter
from probewire.analysis.sae.model.configs import ARCHITECTURES, NORMALISATIONS, TrainConfig, new_sae
from probewire.analysis.sae.model.loaded import load
from probewire.analysis.sae.training import checkpoints, training_run as run_module
from probewire.analysis.sae.training.curves import Curves
from probewire.analysis.sae.training.training import TrainedSae, fit, train
from probewire.analysis.sae.training.training_run import TrainingRun
from probewire.clients import Client, FailedPrecondition, InvalidArgument
from tests.analysis.sae.model.test_configs import SPARSITY
from tests.analysis.sae.planted_rows import D_IN, SIZE, Failing, batches, rows

STEPS = 48


def config(architecture: str = "topk", **options: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "d_sae": 40,
        "steps": STEPS,
        "batch_size": SIZE,
        "lr": 5e-3,
        "lr_warm_up_steps": 5,
        "lr_decay_steps": 10,
        "dead_window": 6,  # so that the auxiliary loss is at work
        "sparsity_window": 20,
        "checkpoints": 3,
        "normalisation_batches": 4,
        "seed": 2,
    }
    return TrainConfig(**{"architecture": architecture, **base, **SPARSITY[architecture], **options})


def weights(folder: Path) -> bytes:
    """All that must not differ by a bit."""
    return b"".join((folder / name).read_bytes() for name in ("sae_weights.safetensors", "sparsity.safetensors"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a short run would be its picture and waiting for the disk; test_curves.py looks at pictures, and one test
    here; a process that is killed loses nothing that it has written.
    """

    def draw(self: Curves, *, path: Path, **_: str) -> None:
        path.write_bytes(b"")

    monkeypatch.setattr(Curves, "draw", draw)
    monkeypatch.setattr(checkpoints.os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainConfig], TrainedSae]:
    """Runs that nothing interrupted, each trained once."""
    made: dict[str, TrainedSae] = {}

    def get(wanted: TrainConfig) -> TrainedSae:
        key = json.dumps(wanted.to_dict())
        if key not in made:
            made[key] = train(batches(), wanted, tmp_path_factory.mktemp("runs") / "run", progress=False)
        return made[key]

    return get


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_weights_are_those_of_sae_lens_own_fit(
    architecture: str, whole: Callable[[TrainConfig], TrainedSae], tmp_path: Path
) -> None:
    wanted = config(architecture)
    sae = new_sae(wanted, D_IN)
    sae_trainer: Any = import_module("sae_lens.training.sae_trainer")
    sae_trainer.SAETrainer(cfg=wanted.trainer_config(), sae=sae, data_provider=batches()).fit()
    sae.save_inference_model(tmp_path)
    assert (tmp_path / "sae_weights.safetensors").read_bytes() == weights(whole(wanted).folder)[: _size(tmp_path)]


def _size(folder: Path) -> int:
    return (folder / "sae_weights.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("architecture", "normalisation"),
    [*zip(ARCHITECTURES, 2 * NORMALISATIONS, strict=True), ("topk", "covariance_whitening"), ("gated", "none")],
)
def test_an_interrupted_run_ends_in_the_same_bits(
    architecture: str, normalisation: str, whole: Callable[[TrainConfig], TrainedSae], tmp_path: Path
) -> None:
    wanted = config(architecture, normalisation=normalisation)
    for reads in (6, 17, 14):  # before the first checkpoint (every 12 steps), after it, after another
        with pytest.raises(ConnectionError):
            train(Failing(batches(), reads), wanted, tmp_path / "run", progress=False)
        torch.rand(5)  # whatever else draws from the global generator
    resumed = train(batches(), wanted, tmp_path / "run", progress=False)
    assert weights(resumed.folder) == weights(whole(wanted).folder)
    assert resumed.curves.to_dict() == whole(wanted).curves.to_dict()
    assert [session["after_step"] for session in resumed.run.sessions] == [0, 0, 12, 24]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_over_a_store_is_resumed_to_the_same_bits(tmp_path: Path) -> None:
    folder, wanted = tmp_path / "store", config(normalisation="expected_average_only_in")
    writer = StoreWriter(
        folder, d_in=D_IN, dtype="bfloat16", model_hash="tiny", site="resid_post.1", rules=[], rows_per_shard=20
    )
    writer.append(Rows.of(rows(700)))
    writer.finish({})
    store = ActivationStore.open(folder)
    with store.batches(SIZE, seed=1, window_shards=3) as source:
        whole = train(source, wanted, tmp_path / "whole", progress=False)
    for reads in (15, 14):
        with store.batches(SIZE, seed=1, window_shards=3) as source, pytest.raises(ConnectionError):
            train(Failing(source, reads), wanted, tmp_path / "run", progress=False)
    with store.batches(SIZE, seed=1, window_shards=3) as source:
        resumed = train(source, wanted, tmp_path / "run", progress=False)
    assert weights(resumed.folder) == weights(whole.folder)
    assert [session["after_step"] for session in resumed.run.sessions] == [0, 12, 24]
    assert resumed.run.data_hash == store.manifest["data_hash"]
    with store.batches(SIZE, seed=2, window_shards=3) as other, pytest.raises(ConnectionError):
        train(Failing(other, 20), wanted, tmp_path / "other", progress=False)
    with (
        store.batches(SIZE, seed=1, window_shards=3) as other,
        pytest.raises(FailedPrecondition, match="other batches"),
    ):
        train(other, wanted, tmp_path / "other", progress=False)


def test_a_run_straight_from_the_server_is_resumed_to_the_same_bits(client: Client, tmp_path: Path) -> None:
    words = np.random.default_rng(0).choice(["the", "cat", "sat", "on", "a", "mat"], size=(20, 20))
    texts = [" ".join(line) for line in words.tolist()]

    def live() -> LiveBatches:
        return LiveBatches(client, texts, "resid_post.1", SIZE, window_rows=100, context=16)

    with live() as source:
        whole = train(source, config(), tmp_path / "whole", progress=False)
    for reads in (15, 14):
        with live() as source, pytest.raises(ConnectionError):
            train(Failing(source, reads), config(), tmp_path / "run", progress=False)
    with live() as source:
        resumed = train(source, config(), tmp_path / "run", progress=False)
    assert weights(resumed.folder) == weights(whole.folder)
    assert [session["after_step"] for session in resumed.run.sessions] == [0, 12, 24]
    assert resumed.run.data["kind"] == "live"


class Noise:
    """A loss that draws from torch's generator."""

    name = "noise"

    def __init__(self) -> None:
        self.note: dict[str, Any] = {}

    def __call__(self, sae: Any, output: Any) -> Any:
        return (sae.b_dec * torch.rand(D_IN)).sum()


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = train(batches(), config(), tmp_path / "whole", progress=False, added_loss=Noise())
    torch.manual_seed(6)
    with pytest.raises(ConnectionError):
        train(Failing(batches(), 20), config(), tmp_path / "run", progress=False, added_loss=Noise())
    before = torch.get_rng_state()
    resumed = train(batches(), config(), tmp_path / "run", progress=False, added_loss=Noise())
    assert weights(resumed.folder) == weights(whole.folder)
    assert torch.equal(torch.get_rng_state(), before), "nobody else's generator is moved"
    assert weights(whole.folder) != weights(train(batches(), config(), tmp_path / "plain", progress=False).folder)


@pytest.mark.parametrize("where", ["reading", "checkpoint", "finish"])
def test_a_killed_process_is_resumed_to_the_same_bits(
    where: str, whole: Callable[[TrainConfig], TrainedSae], tmp_path: Path
) -> None:
    wanted, folder = config("batchtopk"), tmp_path / "run"
    for count in {"reading": (7, 30), "checkpoint": (2, 9, 12), "finish": (1, 3, 5)}[where]:
        killed = multiprocessing.get_context("fork").Process(target=_train_and_die, args=(where, count, wanted, folder))
        killed.start()
        killed.join(60)
        assert killed.exitcode == -signal.SIGKILL
    resumed = train(batches(), wanted, folder, progress=False)
    assert weights(resumed.folder) == weights(whole(wanted).folder)
    assert resumed.curves.to_dict() == whole(wanted).curves.to_dict()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in whole(wanted).folder.iterdir()
    )


def _train_and_die(where: str, count: int, wanted: TrainConfig, folder: Path) -> None:
    """Killed at the `count`-th read of a batch, flush of a file of a checkpoint, or rename of a file of the SAE."""
    source: Any = batches()
    if where == "reading":
        source = Failing(source, count, kill=True)
    else:
        module, name = (checkpoints, "_to_disk") if where == "checkpoint" else (run_module, "move_in")
        left, original = [count], getattr(module, name)

        def dying(*paths: Path) -> None:
            inside = where == "finish" or ".writing" in str(paths[0].parent) or paths[0].name == ".writing"
            left[0] -= inside
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*paths)

        setattr(module, name, dying)
    train(source, wanted, folder, progress=False)
    os._exit(0)  # not killed: the test sees it


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_saved_is_what_was_trained(
    architecture: str, normalisation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On activations as they are, the loaded SAE gives what the trained one gave on normalised ones."""
    x = torch.from_numpy(rows(200, seed=9))
    seen: dict[str, Any] = {}
    fold = TrainingRun._fold

    def watched(self: TrainingRun) -> None:
        with torch.no_grad():
            seen["f"], seen["x"] = _latents(self.sae, self.trainer.activation_scaler.scale(x))
            seen["x"] = self.trainer.activation_scaler.unscale(seen["x"])
        fold(self)

    monkeypatch.setattr(TrainingRun, "_fold", watched)
    trained = train(batches(), config(architecture, normalisation=normalisation), tmp_path / "run", progress=False)
    loaded = load(tmp_path / "run")
    expected = {"batchtopk": "jumprelu", "matryoshka": "jumprelu"}.get(architecture, architecture)
    assert loaded.architecture == trained.sae.architecture == expected
    f = loaded.encode(x.numpy())
    assert np.array_equal(f > 0, seen["f"].numpy() > 0)
    scale = _decoder_lengths(loaded, seen["f"].numpy(), f)
    np.testing.assert_allclose(f * scale, seen["f"].numpy(), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(loaded.reconstruct(x.numpy()), seen["x"].numpy(), rtol=2e-4, atol=2e-4)


def _latents(sae: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and reconstructions by the trained SAE itself; BatchTopK's with its threshold for the batch's top k."""
    f, hidden = sae.encode_with_hidden_pre(x)
    if hasattr(sae, "topk_threshold"):
        f = hidden * (hidden > sae.topk_threshold)
    return f, sae.decode(f)


def _decoder_lengths(loaded: Any, before: Any, after: Any) -> Any:
    """[latent]: folding a normalisation may move a factor a latent between latent and decoder; one for all rows."""
    active = (before > 0).sum(axis=0) > 0
    scale = np.ones(before.shape[1])
    scale[active] = before[:, active].sum(axis=0) / after[:, active].sum(axis=0)
    return scale


def test_a_folder_is_an_sae_with_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    wanted = config("batchtopk")
    trained = train(batches(), wanted, tmp_path / "run", progress=False)
    cfg = json.loads((trained.folder / "cfg.json").read_text())
    assert cfg["architecture"] == "jumprelu"
    assert cfg["metadata"]["hook_name"] == trained.sae.site == "resid_post.1"
    assert cfg["metadata"]["model_hash"] == "tiny"
    assert cfg["metadata"]["training_architecture"] == "batchtopk"
    run = json.loads((trained.folder / "run.json").read_text())
    assert run["data_hash"] == batches().manifest["data_hash"]
    assert (run["status"], run["steps"], run["seed"]) == ("finished", STEPS, 2)
    assert TrainConfig.from_dict(run["config"]) == wanted
    assert {"torch", "sae-lens"} <= set(run["libraries"])
    assert run["probewire_version"]
    assert run["wall_seconds"] > 0
    assert run["final"] == trained.curves.last
    assert (trained.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {(trained.folder / name).stat().st_mode & 0o777 for name in ("cfg.json", "sae_weights.safetensors")} == {
        (trained.folder / "run.json").stat().st_mode & 0o777
    }


def test_curves_are_of_the_batch_and_by_the_right_formula(tmp_path: Path) -> None:
    wanted = config("standard", lr_warm_up_steps=0, log_every=1)
    trained = train(batches(), wanted, tmp_path / "run", progress=False)
    x = next(batches())
    sae = new_sae(wanted, D_IN)
    with torch.no_grad():
        f = sae.encode(x)
        error = (sae.decode(f) - x).pow(2).sum()
    curves = trained.curves
    assert len(curves) == STEPS
    assert curves["explained_variance"][0] == pytest.approx(float(1 - error / (x - x.mean(0)).pow(2).sum()), abs=1e-5)
    assert curves["l0"][0] == pytest.approx(float((f > 0).float().sum(1).mean()), abs=1e-6)
    assert curves["loss/mse_loss"][0] == pytest.approx(float(error / SIZE), rel=1e-5)
    assert np.allclose(curves["loss"], sum(curves.losses.values()), rtol=1e-5)
    assert curves["lr"][0] == wanted.lr
    assert curves["lr"][-1] == pytest.approx(wanted.lr / 10)  # the last of ten steps down to 0
    assert np.isnan(curves["dead"][:6]).all()
    assert np.isfinite(curves["dead"][6:]).all()


def test_training_learns(tmp_path: Path) -> None:
    trained = train(batches(n=4000), config(steps=600, lr=1e-2, k=6), tmp_path / "run", progress=False)
    assert trained.curves["explained_variance"][-20:].mean() > 0.9
    x = rows(n=500, seed=0)
    unexplained = ((x - trained.sae.reconstruct(x)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert unexplained < 0.1


def test_a_finished_run_is_only_loaded(whole: Callable[[TrainConfig], TrainedSae]) -> None:
    first = whole(config())
    before = (first.folder / "run.json").read_bytes()
    again = train(Failing(batches(), 0), replace(config(), checkpoints=9), first.folder, progress=False)
    assert np.array_equal(again.sae.w_dec, first.sae.w_dec)
    assert (first.folder / "run.json").read_bytes() == before


def test_checkpoints_are_kept_where_asked(tmp_path: Path) -> None:
    train(batches(), config("batchtopk"), tmp_path / "run", progress=False, keep_checkpoints=True)
    found = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in found] == ["step-000000012", "step-000000024", "step-000000036"]
    training_sae = import_module("sae_lens").TrainingSAE
    assert training_sae.load_from_disk(found[1] / "sae").cfg.architecture() == "batchtopk"


def test_long_lists_of_the_data_are_not_copied_into_every_run(tmp_path: Path) -> None:
    said = {"statistics": {"mean": [0.0] * 33, "mean_norm": 2.0}, "rules": [{"rule": "position"}]}
    trained = train(ArrayBatches(rows(), SIZE, manifest=said), config(), tmp_path / "run", progress=False)
    assert trained.run.data["statistics"] == {"mean": "33 items", "mean_norm": 2.0}
    assert trained.run.data["rules"] == said["rules"]


class Pull:
    """Draws the decoder's bias to ones."""

    name = "pull"

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.note = {"weight": weight}

    def __call__(self, sae: Any, output: Any) -> Any:
        return self.weight * (sae.b_dec - 1).pow(2).sum()


def test_a_loss_may_be_added(tmp_path: Path) -> None:
    wanted = config(log_every=1)
    trained = train(batches(), wanted, tmp_path / "run", progress=False, added_loss=Pull(10.0))
    assert trained.curves["loss/pull"][0] == pytest.approx(10.0 * D_IN)
    assert np.allclose(trained.curves["loss"], sum(trained.curves.losses.values()), rtol=1e-5)
    assert trained.run.added_loss == {"name": "pull", "weight": 10.0}
    with pytest.raises(FailedPrecondition, match=r"added_loss .*'weight': 10.0.* there, .*'weight': 2.0.* here"):
        train(batches(), wanted, tmp_path / "run", progress=False, added_loss=Pull(2.0))


def test_data_without_a_norm_is_refused(tmp_path: Path) -> None:
    zeros = ArrayBatches(np.zeros((100, D_IN), dtype=np.float32), SIZE)
    with pytest.raises(InvalidArgument, match="the data is 0 throughout"):
        train(zeros, config(normalisation="expected_average_only_in"), tmp_path / "run", progress=False)


def test_one_stream_has_one_batch_size(tmp_path: Path) -> None:
    pair = {
        str(size): TrainingRun(config(batch_size=size), D_IN, {}, tmp_path / str(size)) for size in (SIZE, 2 * SIZE)
    }
    with pytest.raises(InvalidArgument, match=r"one batch_size, got \[32, 64\]"):
        fit(batches(), pair, tmp_path, progress=False)
