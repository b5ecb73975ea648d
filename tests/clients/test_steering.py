"""Steering vectors as values: where they act, what they keep, and on which model they are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
from fake_service import FakeService

from probewire.clients import (
    Client,
    FailedPrecondition,
    Hook,
    InvalidArgument,
    LogProb,
    NotFound,
    SteeringVector,
    ablate,
    capture,
    steer,
)
from probewire.protos.spec import Gather, Project

UP = np.array([1.0, 0, 0, 0], np.float32)


@pytest.fixture
def fake() -> Client:
    return Client(service=FakeService())


def vector(**more: Any) -> SteeringVector:
    return SteeringVector({"resid_post.1": UP, "resid_post.0": 2 * UP}, "fake", "abc123", "by hand", **more)


def test_it_steers_at_each_of_its_sites(client: Client) -> None:
    assert [hook.site for hook in steer(vector(), 2.0)] == ["resid_post.1", "resid_post.0"]
    assert client.generate("a", hooks=steer(vector(), 2.0), max_new_tokens=1).text == chr(ord("b") + 2 * 3)
    assert client.generate("a", hooks=steer(vector(), alpha=2.0), max_new_tokens=1).text == chr(ord("b") + 2 * 3)
    assert client.generate("a", hooks=steer(vector().at("resid_post.0")), max_new_tokens=1).text == "d"
    mixed = [ablate("z.0"), steer(vector(), 1.0, positions=-1, id="v"), steer("resid_post.2", UP)]
    found = client.generate("a", hooks=mixed, capture="embed", max_new_tokens=1)
    assert [(hook.site, hook.id) for hook in found.plan.hooks] == [
        ("z.0", None),
        ("resid_post.1", "v.0"),
        ("resid_post.0", "v.1"),
        ("resid_post.2", None),
        ("embed", None),
    ]
    assert found.plan.hooks[1].where.positions == (-1,)
    assert type(found.plan.hooks[1]).__name__ == "Hook", "plans are plain"
    assert found.asked.vectors_of == ("abc123",)


def test_between_two_results(fake: Client) -> None:
    """Means of 97 and 100, 101, 102: each input counts alike, whatever its length."""
    positive = fake.run({"x": "a", "y": "def"}, capture=["resid_post.*", "embed"])
    negative = fake.run("b", capture=["resid_post.1", "embed", "z.0"])
    found = SteeringVector.between(positive, negative)
    assert found.sites == ("embed", "resid_post.1")
    assert found.directions["embed"].tolist() == [(97 + 101) / 2 - 98] * 4
    assert (found.model, found.model_hash) == ("fake", "abc123")
    assert found.made == "mean rows of 2 inputs minus those of 1"
    assert found.details["dtype"] == "bfloat16"
    with pytest.raises(InvalidArgument, match=r"share no site: z\.0 and embed"):
        SteeringVector.between(fake.run("a", capture="z.0"), fake.run("b", capture="embed"))


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (capture("resid_post.1", reduce=Gather((3, 2, 1, 0))), "reduced by gather"),
        (capture("resid_post.1", reduce=Project(np.eye(64, dtype=np.float32))), "reduced by project"),
        (capture("resid_post.1", reduce="norm"), "reduced by norm"),
        (capture("attn_probs.1"), "attention over keys"),
    ],
)
def test_only_rows_of_the_site_make_a_direction(tiny: Client, read: Hook, what: str) -> None:
    """Sixty-four projections are as wide as the stream, and no direction of it."""
    results = [tiny.run(text, capture=[read]) for text in ("abc", "xyz")]
    with pytest.raises(InvalidArgument, match=what):
        SteeringVector.between(*results)


@pytest.mark.parametrize("reduce", ["last", "mean"])
def test_rows_may_be_reduced_to_one(tiny: Client, reduce: Literal["last", "mean"]) -> None:
    one, two = (tiny.run(text, capture=[capture("resid_post.1", reduce=reduce)]) for text in ("abc", "xyz"))
    whole = [tiny.run(text, capture="resid_post.1")["resid_post.1"] for text in ("abc", "xyz")]
    rows = [array[-1] if reduce == "last" else array.mean(axis=0) for array in whole]
    found = SteeringVector.between(one, two).directions["resid_post.1"]
    np.testing.assert_allclose(found, rows[0] - rows[1], rtol=1e-4, atol=1e-5)


def test_saved_and_loaded(tmp_path: Path) -> None:
    before = SteeringVector(
        {"z.1": np.ones((2, 2), ml_dtypes.bfloat16), "resid_post.2": UP}, "m", "h", "how", {"prompts": "é"}
    )
    after = SteeringVector.load(before.save(tmp_path / "v.safetensors"))
    assert (after.model, after.model_hash, after.made, after.details) == ("m", "h", "how", {"prompts": "é"})
    assert set(after.sites) == {"z.1", "resid_post.2"}
    for site in before.sites:
        assert after.directions[site].dtype == before.directions[site].dtype
        np.testing.assert_array_equal(after.directions[site], before.directions[site])
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]
    with pytest.raises(NotFound, match="no file"):
        SteeringVector.load(tmp_path / "none")
    (tmp_path / "junk").write_bytes(b"junk" * 9)
    with pytest.raises(InvalidArgument, match="not a safetensors file"):
        SteeringVector.load(tmp_path / "junk")
    run = Client(service=FakeService()).run("a", capture="embed").save(tmp_path / "run")
    with pytest.raises(InvalidArgument, match=r"was not written by SteeringVector\.save"):
        SteeringVector.load(run)


def test_its_length_and_parts() -> None:
    found = vector()
    assert found.norms == {"resid_post.1": 1.0, "resid_post.0": 2.0}
    assert found.unit().norms == {"resid_post.1": 1.0, "resid_post.0": 1.0}
    assert found.scaled(-3).directions["resid_post.0"].tolist() == [-6, 0, 0, 0]
    assert found.scaled(-3).made == "by hand, × -3"
    assert repr(found).splitlines() == [
        "SteeringVector of fake",
        "  made  by hand",
        "  resid_post.1  ‖v‖ 1",
        "  resid_post.0  ‖v‖ 2",
    ]
    with pytest.raises(NotFound, match=r"no direction at \['resid_post.2'\]; it has resid_post.1, resid_post.0"):
        found.at("resid_post.2")
    with pytest.raises(ValueError, match="read-only"):
        found.directions["resid_post.1"][0] = 5


@pytest.mark.parametrize(
    ("directions", "why"),
    [
        ({}, "needs a direction"),
        ({"resid_post.0": [0.0, 0.0]}, "not all 0"),
        ({"resid_post.0": np.ones((1, 2, 3))}, r"shape \[1, 2, 3\]"),
        ({"resid_post.0": [np.nan, 1.0]}, "NaN or infinite"),
        ({"resid_post.-1": UP}, "counts layers from the end"),
        ({"resid_post.*": UP}, "stands for several sites"),
        ({"resid": UP}, "unknown site"),
    ],
)
def test_what_is_no_vector(directions: Any, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        SteeringVector(directions)


# ---- another model ---------------------------------------------------------------------------------------------------


def test_another_models_vector_is_refused_before_anything_is_computed(client: Client, service: FakeService) -> None:
    other = SteeringVector({"resid_post.1": UP}, "elsewhere", "fff")
    hooks = [ablate("z.0"), *steer(other)]
    service.before_step = lambda _: pytest.fail("a step was computed")
    for call in (
        lambda: client.generate("a", hooks=hooks),
        lambda: client.stream("a", hooks=hooks),
        lambda: client.run(["a"] * 70, hooks=hooks),
        lambda: client.gradients("a", LogProb(1), at="embed", hooks=steer(other)),
        lambda: client.sweep("a", LogProb(1), [[], hooks], progress=False),
        lambda: client.sweep("a", LogProb(1), [[]], hooks=hooks, progress=False),
        lambda: client.session(hooks),
    ):
        with pytest.raises(
            FailedPrecondition, match=r"made on another model \(fff\) than fake \(abc123\).*any_model=True"
        ):
            call()
    assert client.sessions() == []
    assert (
        client.run("a", hooks=steer(other, any_model=True), capture="resid_post.1")["resid_post.1"][0, 0]
        == 97 + 1000 + 1
    )


def test_a_session_is_not_changed_to_another_models_vector(client: Client) -> None:
    with client.session(steer(vector())) as live:
        assert live.revision == 1
        with pytest.raises(FailedPrecondition, match="made on another model"):
            live.update(steer(SteeringVector({"resid_post.1": UP}, "elsewhere", "fff")))
        assert client.get_session(live.id).revision == 1
        assert live.update(steer(vector(), 3.0)).revision == 2


def test_a_vector_of_no_known_model_is_taken_as_it_is(fake: Client) -> None:
    found = fake.run("a", hooks=steer(SteeringVector({"resid_post.1": UP})), capture="resid_post.1")
    assert found["resid_post.1"][0, 0] == 97 + 1000 + 1


def test_repeating_keeps_the_check(fake: Client, tmp_path: Path) -> None:
    from probewire.clients import load

    result = fake.run("a", hooks=steer(vector()), capture=capture("embed"))
    again = load(result.save(tmp_path / "r"))
    assert again.asked.vectors_of == ("abc123",)
    assert fake.repeat(again).asked == replace(result.asked, model="fake")
