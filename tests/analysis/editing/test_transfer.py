"""Transfer to a twin whose relation to the source is known: the same function in a rotated basis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.editing import (
    edit_facts,
    fit_map,
    install_circuit,
    random_map,
    rotated_twin,
    transfer_affine,
    transfer_condition,
    transfer_variant,
    transfer_vector,
    truncated_twin,
    variant_hooks,
)
from probewire.analysis.editing.model_map import matched_positions
from probewire.analysis.steering import conditional, fit_condition
from probewire.clients import Affine, Client, Condition, SteeringVector, Tensor, Variant, hook, steer
from probewire.protos.errors import FailedPrecondition, InvalidArgument, Unsupported
from probewire.protos.model import Tokenized
from probewire.protos.variants.delta import Delta
from tests.analysis.editing.conftest import opened
from tests.analysis.editing.test_edit_facts import ADA, FAST
from tests.tiny_models import tiny_checkpoint

WORDS = ("owl", "fox", "hare", "pond", "hill", "rain", "letter", "window", "harbour", "music", "copper", "seven")
TEXTS = [
    f"The {a} {i} saw a {b}; {b} and {a} left at {7 * i}."
    for i, (a, b) in enumerate(zip(WORDS, WORDS[::-1], strict=True))
]
HELD_OUT = ["The job of Ada is", "What a letter about copper"]


@dataclass(frozen=True, slots=True)
class Twin:
    client: Client
    q: Any


@pytest.fixture(scope="module")
def twin(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    out = tmp_path_factory.mktemp("twins") / "rotated"
    q = rotated_twin(tiny_folder, out, seed=3)
    with opened(out) as client:
        yield Twin(client, q)


def logits(client: Client, text: str, hooks: Any = ()) -> Any:
    return np.asarray(client.run(text, capture=["logits"], hooks=hooks)["logits"], dtype=np.float64)


def apart(found: Any, expected: Any) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_the_twin_is_the_same_function_in_another_basis(tiny: Client, twin: Twin) -> None:
    for text in HELD_OUT:
        assert apart(logits(twin.client, text), logits(tiny, text)) < 1e-4
        one, other = (client.run(text, capture=["resid_post.1", "mlp_act.1"]) for client in (tiny, twin.client))
        assert apart(other["resid_post.1"], one["resid_post.1"] @ twin.q.T) < 1e-4
        assert apart(other["mlp_act.1"], one["mlp_act.1"]) < 1e-4


@pytest.mark.parametrize(("kind", "ridge"), [("procrustes", 0.0), ("ridge", 1e-9)])
def test_the_map_is_the_rotation(tiny: Client, twin: Twin, kind: Any, ridge: float) -> None:
    found = fit_map(tiny, twin.client, TEXTS, (1, 1), kind=kind, ridge=ridge)
    assert found.n_rows >= 4 * 64
    assert np.linalg.norm(found.matrix - twin.q) / np.linalg.norm(twin.q) < 1e-3
    assert found.held.r2 > 0.9999
    vector = np.random.default_rng(0).normal(size=64)
    moved = transfer_vector(vector, found)
    assert moved @ (twin.q @ vector) / np.linalg.norm(moved) / np.linalg.norm(vector) >= 0.9999
    rows = np.asarray(tiny.run(HELD_OUT[0], capture=["resid_post.1"])["resid_post.1"])
    assert apart(found.rows(rows), rows @ twin.q.T) < 1e-2


def test_the_layer_is_found(tiny: Client, twin: Twin) -> None:
    found = fit_map(tiny, twin.client, TEXTS, (1, None), kind="procrustes")
    assert found.layers == (1, 1)
    assert sorted(found.by_layer) == [0, 1, 2]
    assert found.by_layer[1] == max(found.by_layer.values())


def test_controls_carry_nothing(tiny: Client, twin: Twin) -> None:
    shuffled = fit_map(tiny, twin.client, TEXTS, (1, 1), ridge=1.0, shuffled=0)
    assert shuffled.held.r2 <= 0.05
    assert not shuffled.held.usable
    assert "no transfer" in str(shuffled)
    found = fit_map(tiny, twin.client, TEXTS, (1, 1), kind="procrustes")
    random = random_map(found, seed=1)
    assert np.linalg.norm(random.matrix) == pytest.approx(np.linalg.norm(found.matrix))
    assert np.allclose(random.matrix @ random.matrix.T, np.eye(64), atol=1e-9)
    assert abs(np.trace(random.matrix.T @ twin.q)) / 64 < 0.3


def test_a_steering_vector_and_an_affine_edit_do_there_what_they_did_here(tiny: Client, twin: Twin) -> None:
    by = fit_map(tiny, twin.client, TEXTS, (1, 1), kind="procrustes")
    rng = np.random.default_rng(2)
    vector = SteeringVector({"resid_post.1": rng.normal(size=64)}, model_hash=tiny.describe().model_hash)
    moved = transfer_vector(vector, by)
    assert moved.model_hash == twin.client.describe().model_hash
    one = {"site": "resid_post.1", "edit": {"add": {"vector": vector.directions["resid_post.1"]}}}
    other = {"site": "resid_post.1", "edit": {"add": {"vector": moved.directions["resid_post.1"]}}}
    assert apart(logits(twin.client, HELD_OUT[0], other), logits(tiny, HELD_OUT[0], one)) < 1e-3
    a, b, c = (Tensor.of(rng.normal(size=shape) / 8) for shape in ((64, 2), (2, 64), (2,)))
    affine = Affine(a, b, c, alpha=0.5)
    there = transfer_affine(affine, by)
    found = logits(twin.client, HELD_OUT[1], hook("resid_post.1", there))
    assert apart(found, logits(tiny, HELD_OUT[1], hook("resid_post.1", affine))) < 1e-3


def test_a_variant_does_there_what_it_did_here(tiny: Client, twin: Twin) -> None:
    edited = edit_facts(tiny, ADA, layers=1, **FAST)
    by = fit_map(tiny, twin.client, TEXTS, (1, 1), kind="procrustes")
    found = transfer_variant(tiny, edited.variant, twin.client, by, [*TEXTS, *HELD_OUT], ridge=1e-10, rank=1)
    assert found.fit > 0.9999
    assert found.variant.deltas["w_down.1"].rank == 1
    assert found.variant.manifest.made_of[0]["hash"] == edited.variant.hash
    text = "So the job of Ada"  # not among those that it was fitted to
    moved, expected = logits(twin.client, text, variant_hooks(found.variant)), logits(tiny, text, edited.hooks)
    assert apart(moved, expected) < 1e-3
    assert apart(moved, logits(tiny, text)) > 1e-2  # it does something
    wrong = transfer_variant(tiny, edited.variant, twin.client, random_map(by, 5), TEXTS, ridge=1e-10, rank=1)
    assert apart(logits(twin.client, text, variant_hooks(wrong.variant)), expected) > 1e-2


def said(client: Client, text: str, condition: Any) -> bool:
    """Whether the server takes a condition to hold for a prompt: a hook under it changes what is generated from it."""
    vector = np.full(64, 50.0, np.float32)
    hooks = conditional([steer("resid_post.2", vector)], condition)
    found = [client.run(text, hooks=some, capture=["resid_post.2"])["resid_post.2"][-1] for some in ([], hooks)]
    return bool(np.abs(found[1] - found[0]).max() > 1.0)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_condition_holds_there_where_it_held_here(tiny: Client, twin: Twin, normalise: bool) -> None:
    by = fit_map(tiny, twin.client, TEXTS, (1, 1), kind="procrustes")
    rows = np.stack([np.asarray(tiny.run(text, capture=["resid_post.1"])["resid_post.1"])[-1] for text in TEXTS])
    direction = np.random.default_rng(4).normal(size=64)
    read = rows @ direction / (np.linalg.norm(rows, axis=1) * np.linalg.norm(direction) if normalise else 1.0)
    ordered = np.sort(read)
    at = int(np.argmax(np.diff(ordered)[2:-2])) + 2  # where no rounding can decide
    threshold = float((ordered[at] + ordered[at + 1]) / 2)
    here = Condition(
        threshold, site="resid_post.1", direction=Tensor.of(direction.astype(np.float32)), normalise=normalise
    )
    found = transfer_condition(tiny, here, twin.client, by, TEXTS)
    assert found.source.tolist() == (read > threshold).tolist()
    assert found.agreement == 1.0
    assert found.condition.direction is not None
    np.testing.assert_allclose(found.condition.direction.numpy(), twin.q @ direction, atol=1e-2)
    if not normalise:  # a cosine's is anywhere within the gap
        assert found.condition.threshold == pytest.approx(threshold, abs=1e-2 * float(np.abs(read).max()))
    for text in HELD_OUT:
        assert said(twin.client, text, found.condition) == said(tiny, text, here)
    wrong = transfer_condition(tiny, here, twin.client, random_map(by, 3), TEXTS)
    assert wrong.agreement < 1.0, "another rotation reads something else"


def test_a_fitted_condition_is_latched_there_too(tiny: Client, twin: Twin) -> None:
    by = fit_map(tiny, twin.client, TEXTS, (1, 1), kind="procrustes")
    fitted = fit_condition(tiny, TEXTS[:6], [text.upper() for text in TEXTS[:6]], sites="resid_post.1", n_shuffles=0)
    prompts = [*TEXTS[6:], *(text.upper() for text in TEXTS[6:])]
    found = transfer_condition(tiny, fitted, twin.client, by, prompts)
    assert (found.condition.latch, found.condition.normalise) == ("mean", True)
    assert found.agreement == 1.0
    assert "the same answer for 100%" in str(found)


def test_what_is_no_condition_for_another_model(tiny: Client, twin: Twin) -> None:
    by = fit_map(tiny, twin.client, TEXTS, (1, 1), kind="procrustes")
    direction = Tensor.of(np.ones(64, np.float32))
    for wrong, match in (
        (Condition(0.0, site="resid_post.1", unit=3), "no counterpart"),
        (Condition(0.0, site="resid_post.2", direction=direction), "the map leads from resid_post.1"),
        (Condition(0.0, direction=direction), "the site of its hook"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            transfer_condition(tiny, wrong, twin.client, by, TEXTS)
    right = Condition(0.0, site="resid_post.1", direction=direction)
    with pytest.raises(InvalidArgument, match="2 prompts; give 4 or more"):
        transfer_condition(tiny, right, twin.client, by, TEXTS[:2])
    with pytest.raises(FailedPrecondition, match="not the models"):
        transfer_condition(twin.client, right, tiny, by, TEXTS)


def test_tokens_that_end_at_the_same_character_pair() -> None:
    one = Tokenized((0, 1, 2, 3), ("<s>", "The", " capital", "!"), "<s>The capital!")
    other = Tokenized((5, 6, 7, 8), ("The", " cap", "ital", "!"), "The capital!")
    assert matched_positions(one, other, "The capital!") == [(2, 2), (3, 3)]  # "The" is the first token there
    assert matched_positions(one, other, "something else") == []


def test_a_model_cut_short(tiny: Client, tiny_folder: Path, tmp_path: Path) -> None:
    truncated_twin(tiny_folder, tmp_path / "short", 2)
    with opened(tmp_path / "short") as short:
        assert short.describe().n_layers == 2
        one, other = (client.run("a pond", capture=["resid_post.1"])["resid_post.1"] for client in (tiny, short))
        assert apart(other, one) < 1e-5
    with pytest.raises(InvalidArgument, match=r"n_layers must be in 1 … 2"):
        truncated_twin(tiny_folder, tmp_path / "none", 3)
    with pytest.raises(FailedPrecondition, match="not empty"):
        truncated_twin(tiny_folder, tmp_path / "short", 2)


def test_what_is_refused(tiny: Client, twin: Twin, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no counterparts there"):
        install_circuit("circuit", twin.client)
    with pytest.raises(InvalidArgument, match="rows to fit a map of 64 dimensions"):
        fit_map(tiny, twin.client, ["ab", "cd"], (1, 1), held_out=2)
    with pytest.raises(InvalidArgument, match="as many texts at least"):
        fit_map(tiny, twin.client, ["ab"], (1, 1))
    by = fit_map(tiny, twin.client, TEXTS, (0, 0), kind="procrustes")
    late = Variant({"w_down.2": Delta(np.ones((96, 1)), np.ones((1, 64)))})
    with pytest.raises(InvalidArgument, match=r"changes nothing at resid_post\.0"):
        transfer_variant(tiny, late, twin.client, by, TEXTS[:2])
    with pytest.raises(FailedPrecondition, match="not of the models"):
        transfer_variant(tiny, late, tiny, by, TEXTS[:2])
    with pytest.raises(InvalidArgument, match="the map leads from"):
        transfer_vector(SteeringVector({"resid_post.2": np.ones(64)}), by)
    with pytest.raises(InvalidArgument, match="needs one of resid_post"):
        transfer_variant(tiny, late, twin.client, replace(by, site="mlp_out"), TEXTS[:2])
    with pytest.raises(Unsupported, match="plain llama"):
        rotated_twin(tiny_checkpoint("gpt2", tmp_path), tmp_path / "out")
