"""The value to write: its gradient against finite differences, its descent, both backends, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.editing import Fact, target_value
from probewire.analysis.editing.target_value import _Problem  # its loss is what is tested
from probewire.analysis.editing.wording import answer_ids, worded, wordings
from probewire.clients import Client
from probewire.protos.errors import InvalidArgument, Unsupported
from tests.analysis.editing.conftest import opened
from tests.tiny_models import tiny_checkpoint

FACT = Fact("Ada", "The job of {} is", " pilot", " nurse")
PREFIXES = ("", "It is so. ", "Note. ")


def test_the_gradient_is_that_of_the_loss(tiny: Client) -> None:
    problem = _Problem(tiny, FACT, 1, PREFIXES, 0.5, (), "")
    rng = np.random.default_rng(0)
    at = rng.normal(size=64) * 0.2
    found = problem.measure(at)
    for _ in range(3):
        way = rng.normal(size=64)
        way /= np.linalg.norm(way)
        step = 0.1  # of a loss in float32
        slope = (problem.measure(at + step * way).loss - problem.measure(at - step * way).loss) / (2 * step)
        assert slope == pytest.approx(float(found.gradient @ way), abs=1e-3 * float(np.linalg.norm(found.gradient)))


def test_the_loss_falls_and_the_answer_becomes_likely(tiny: Client) -> None:
    fact = Fact("Ada", "The job of {} is", "x")  # one token: random weights cannot be brought to say six
    found = target_value(tiny, fact, 1, prefixes=PREFIXES, clamp=20.0, steps=30)
    assert found.losses[-1] < found.losses[0] - 1.5
    worst = max(after / before for before, after in zip(found.losses, found.losses[1:], strict=False))
    assert worst < 1.05
    assert found.n_wordings == 3
    problem = _Problem(tiny, fact, 1, PREFIXES, 0.0625, (), "")
    assert problem.measure(found.delta).log_prob == pytest.approx(found.target_log_prob, abs=1e-4)
    assert np.allclose(found.wanted, found.value + found.delta)


def test_the_step_stays_within_the_ball(tiny: Client) -> None:
    found = target_value(tiny, FACT, 1, prefixes=PREFIXES, clamp=0.25, steps=6)
    assert np.linalg.norm(found.delta) <= 0.25 * np.linalg.norm(found.value) * (1 + 1e-9)


def test_key_and_value_are_the_models_own(tiny: Client) -> None:
    found = target_value(tiny, FACT, 1, prefixes=PREFIXES, steps=1)
    keys: list[Any] = []
    values: list[Any] = []
    for one in wordings(tiny, FACT, PREFIXES, ""):
        run = tiny.run(list(one.ids), capture=["mlp_act.1", "mlp_out.1"])
        keys.append(run["mlp_act.1"][one.position])
        values.append(run["mlp_out.1"][one.position])
    np.testing.assert_allclose(found.key, np.mean(keys, axis=0), rtol=0, atol=1e-5 * np.abs(keys).max())
    np.testing.assert_allclose(found.value, np.mean(values, axis=0), rtol=0, atol=1e-5 * np.abs(values).max())


def test_torch_and_mlx_find_the_same(clients: dict[str, Client]) -> None:
    one, other = (target_value(c, FACT, 1, prefixes=PREFIXES, steps=8) for c in clients.values())
    cosine = one.delta @ other.delta / (np.linalg.norm(one.delta) * np.linalg.norm(other.delta))
    assert cosine >= 0.999
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-3)


def test_the_place_is_the_subjects_last_token(tiny: Client) -> None:
    found = worded(tiny, "The job of Ada is", len("The job of Ada"), " pilot")
    tokens = tiny.tokenize("The job of Ada is").tokens
    assert "".join(tokens[: found.position + 1]).endswith("Ada")
    assert "".join(tokens[found.first :])[-1] == "s"
    assert answer_ids(tiny, "The job of Ada is", " pilot") == found.answer
    assert found.rows == tuple(range(found.first, found.first + len(found.answer)))


def test_what_is_refused(tiny: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"layer 3; allowed: 0 … 2"):
        target_value(tiny, FACT, 3)
    with pytest.raises(InvalidArgument, match="steps, lr and clamp"):
        target_value(tiny, FACT, 1, steps=0)
    with (
        opened(tiny_checkpoint("gemma2", tmp_path)) as gemma,
        pytest.raises(Unsupported, match="not one matrix times mlp_act"),
    ):
        target_value(gemma, FACT, 1)
