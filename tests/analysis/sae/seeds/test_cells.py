"""Finished trainings on the disk: what is kept, and which folders are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.sae.seeds.cells import Cells, Condition, Trained
from probewire.protos.errors import FailedPrecondition, InvalidArgument

CONDITION = Condition(2, 6, 3)
DECODER = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
IDENTITY = {"data_hash": "abc", "lr": 1e-3}


def test_what_was_put_is_there_in_another_process(tmp_path: Path) -> None:
    with Cells.open(tmp_path, IDENTITY) as cells:
        assert cells.get(CONDITION, 1) is None
        cells.put(CONDITION, 1, Trained(DECODER, 0.5, 2.0, 0.75))
        cells.put(CONDITION, 2, Trained(-DECODER, 0.25))
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert lines[0] == {"identity": IDENTITY}
    assert [line["seed"] for line in lines[1:]] == [1, 2]
    with Cells.open(tmp_path, IDENTITY) as cells:
        assert len(cells) == 2
        found = cells.get(CONDITION, 1)
        assert found is not None
        assert np.array_equal(found.decoder, DECODER)
        assert (found.explained_variance, found.l0, found.alive) == (0.5, 2.0, 0.75)
        assert cells.get(Condition(2, 6, 4), 1) is None
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with Cells.open(tmp_path, IDENTITY) as cells:
        cells.put(CONDITION, 1, Trained(DECODER, 0.5))
    with (
        pytest.raises(FailedPrecondition, match=r"another sweep: lr differ \(there \[0.001\], here \[0.01\]\)"),
        Cells.open(tmp_path, {**IDENTITY, "lr": 1e-2}),
    ):
        pass
    (tmp_path / "cells.jsonl").write_text("{}\nno json")
    with pytest.raises(FailedPrecondition, match="not a ledger"), Cells.open(tmp_path, IDENTITY):
        pass


def test_a_decoder_that_changed_is_not_taken(tmp_path: Path) -> None:
    with Cells.open(tmp_path, IDENTITY) as cells:
        cells.put(CONDITION, 1, Trained(DECODER, 0.5))
        file = next((tmp_path / "decoders").iterdir())
        np.save(file, DECODER + 1)
        with pytest.raises(FailedPrecondition, match="is gone or is not what"):
            cells.get(CONDITION, 1)
        file.unlink()
        with pytest.raises(FailedPrecondition, match="is gone"):
            cells.get(CONDITION, 1)


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with (
        Cells.open(tmp_path, IDENTITY),
        pytest.raises(FailedPrecondition, match="another sweep is at work"),
        Cells.open(tmp_path, IDENTITY),
    ):
        pass


@pytest.mark.parametrize(
    ("trained", "reason"),
    [
        (Trained(DECODER[:5], 0.5), r"decoder of shape \[5, 4\]; it must be \[6, d_in\]"),
        (Trained(DECODER * np.nan, 0.5), "of finite numbers"),
        (Trained(DECODER, 1.2), "at most 1"),
        (Trained(DECODER, float("nan")), "at most 1"),
    ],
)
def test_a_training_that_cannot_be_right_is_not_noted(tmp_path: Path, trained: Trained, reason: str) -> None:
    with Cells.open(tmp_path, IDENTITY) as cells:
        with pytest.raises(InvalidArgument, match=reason):
            cells.put(CONDITION, 1, trained)
        assert len(cells) == 0


@pytest.mark.parametrize(("k", "d_sae", "epochs"), [(0, 4, 1), (5, 4, 1), (1, 4, -1), (1.5, 4, 1)])
def test_a_condition_that_cannot_be_is_refused(k: int, d_sae: int, epochs: int) -> None:
    with pytest.raises(InvalidArgument, match="1 ≤ k ≤ d_sae"):
        Condition(k, d_sae, epochs)
