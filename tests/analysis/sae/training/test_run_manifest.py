"""run.json: what made an SAE, and whose folder it lies in."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from probewire.analysis.sae.training.run_manifest import RunManifest, code_version, library_versions
from probewire.analysis.sae.training.training import read_trained, train
from probewire.clients import FailedPrecondition, InvalidArgument
from tests.analysis.sae.planted_rows import D_IN, Failing, batches
from tests.analysis.sae.training.test_training import config, weights


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    before = RunManifest(config(), D_IN, batches().manifest, added_loss={"name": "pull", "weight": 2.0}).with_session(7)
    before.write(tmp_path)
    assert RunManifest.read(tmp_path) == before
    assert RunManifest.read(tmp_path / "nowhere") is None


def test_the_code_and_the_libraries_are_named() -> None:
    code = code_version()
    assert code["probewire_version"]
    assert code["git_commit"] is None or len(code["git_commit"]) == 40
    assert (code["git_changed"] is None) == (code["git_commit"] is None)
    assert library_versions()["sae-lens"].startswith("6.")


def test_data_without_a_hash_gets_one() -> None:
    one, other = (RunManifest(config(), D_IN, {"site": site}) for site in ("embed", "resid_post.1"))
    assert one.data_hash == RunManifest(config(), D_IN, {"site": "embed"}).data_hash != other.data_hash


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    folder = train(batches(), config(), tmp_path / "run", progress=False).folder
    before = weights(folder)
    with pytest.raises(FailedPrecondition, match=r"holds another run: lr 0.005 there, 0.1 here; seed 2 there, 3 here"):
        train(batches(), config(lr=0.1, seed=3), folder, progress=False)
    with pytest.raises(FailedPrecondition, match=r"data's data_hash '.*' there, '.*' here"):
        train(batches(n=900), config(), folder, progress=False)
    with pytest.raises(FailedPrecondition, match="d_in 16 there, 8 here"):
        train(batches(d_in=8), config(), folder, progress=False)
    with pytest.raises(FailedPrecondition, match="holds a run; give another folder, or resume it"):
        train(batches(), config(), folder, progress=False, resume=False)
    assert weights(folder) == before


def test_a_run_is_not_resumed_with_batches_in_another_order(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        train(Failing(batches(), 20), config(), tmp_path / "run", progress=False)
    with pytest.raises(FailedPrecondition, match="the state is of other batches: seed 1"):
        train(batches(seed=7), config(), tmp_path / "run", progress=False)


def test_folders_of_something_else_or_in_use_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(FailedPrecondition, match=r"holds something else than a training run \(thesis.tex\)"):
        train(batches(), config(), tmp_path, progress=False)
    with pytest.raises(InvalidArgument, match="cannot write to"):
        train(batches(), config(), tmp_path / "thesis.tex" / "run", progress=False)
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(FailedPrecondition, match="another process trains into"):
        train(batches(), config(), tmp_path / "run", progress=False)


def test_an_unfinished_run_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="holds no training run"):
        read_trained(tmp_path)
    with pytest.raises(ConnectionError):
        train(Failing(batches(), 20), config(), tmp_path / "run", progress=False)
    with pytest.raises(FailedPrecondition, match="holds a run that stands at step 12; train it to its end"):
        read_trained(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(FailedPrecondition, match=r"run.json is no manifest"):
        read_trained(tmp_path / "run")
