"""`resid_post.-1` is the last layer wherever a site is named, on both backends; answers have the layer itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.clients import (
    Client,
    Condition,
    Coordinate,
    Input,
    IntegratedPath,
    InvalidArgument,
    LogProb,
    NotFound,
    ablate,
    capture,
    patch,
    steer,
)
from tests.parity.opened import OTHER, TOKENS, Opened, both, gap

UP = np.linspace(-1, 1, 64)


@pytest.fixture
def client(opened: Opened, backend: str) -> Client:
    return opened("llama", backend)


@both
def test_captures_and_edits(client: Client) -> None:
    hooks = [steer("resid_mid.-2", UP), ablate("z.-1", heads=[1]), patch("mlp_out.-3", value=[UP], positions=2)]
    same = [steer("resid_mid.1", UP), ablate("z.2", heads=[1]), patch("mlp_out.0", value=[UP], positions=2)]
    found = client.run(
        TOKENS, hooks=hooks, capture=["resid_post.-1", "resid_pre.-2:", "blocks.-1.mlp.hook_post", "logits"]
    )
    plain = client.run(TOKENS, hooks=same, capture=["resid_post.2", "resid_pre.1:3", "mlp_act.2", "logits"])
    assert [hook.sites for hook in found.started.hooks] == [hook.sites for hook in plain.started.hooks]
    assert found.sites == plain.sites == ("resid_pre.1", "resid_pre.2", "mlp_act.2", "resid_post.2", "logits")
    for site in plain.sites:
        np.testing.assert_array_equal(found[site], plain[site])


@both
def test_results_are_read_so_too(client: Client, tmp_path) -> None:
    from probewire.clients import Run

    run = client.run(TOKENS, capture=["resid_post.*", "z.2"])
    for found in (run, Run.load(run.save(tmp_path / "run.safetensors"))):
        assert found["resid_post.-1"] is found["resid_post.2"]
        assert "z.-1" in found
        assert found.positions("z.-1") == tuple(range(len(TOKENS)))
        np.testing.assert_array_equal(found.stack("resid_post.-2:"), found.stack("resid_post")[1:])
        np.testing.assert_array_equal(found.last("resid_post.-2:-1"), found.stack("resid_post")[1:2, -1])
        assert "z.-2" not in found
        with pytest.raises(NotFound, match=r"'z\.1' was not captured"):
            found.stack("z.-2:")
        with pytest.raises(InvalidArgument, match=r"the model has layers 0:3"):
            found["resid_post.-4"]
    with client.stream(TOKENS, capture="resid_post.*", max_new_tokens=1) as stream:
        step = next(stream)
        np.testing.assert_array_equal(step["resid_post.-1"], step["resid_post.2"])


@both
@pytest.mark.parametrize("ask", ["run", "generate", "session"])
def test_conditions(client: Client, ask: str) -> None:
    first, second = client.run(TOKENS, capture="resid_mid.*").stack("resid_mid")[:2, -1]
    unit = int(np.abs(first - second).argmax())
    between = float(first[unit] + second[unit]) / 2  # so that the two layers decide otherwise

    def logits(site: str) -> Any:
        hook = steer("resid_post.2", UP, when=Condition(between, site=site, unit=unit))
        read = capture("logits", positions=-1)
        if ask == "run":
            return client.run(TOKENS, hooks=hook, capture=read)["logits"]
        if ask == "generate":
            return client.generate(TOKENS, hooks=hook, capture=read, max_new_tokens=2)["logits"]
        with client.session(hook) as live:
            first = client.generate(TOKENS, session=live, capture=read, max_new_tokens=2)["logits"]
            live.update(hook)
            again = client.generate(TOKENS, session=live, capture=read, max_new_tokens=2)["logits"]
        np.testing.assert_array_equal(first, again)
        return first

    np.testing.assert_array_equal(logits("resid_mid.-2"), logits("resid_mid.1"))
    assert gap(logits("resid_mid.-2"), logits("resid_mid.0")) > 1e-6, "another condition, another answer"
    with pytest.raises(InvalidArgument, match=r"hook 0 \(resid_post.2\): when: site resid_mid.-4 names layers"):
        logits("resid_mid.-4")


@both
def test_metrics_and_paths(client: Client) -> None:
    inputs = {"own": TOKENS, "other": Input(token_ids=tuple(OTHER), source_only=True)}

    def found(site: str, path: str, at: str) -> Any:
        metric = Coordinate(site, -1, unit=7)
        got = client.gradients(inputs, metric, at=at, path=IntegratedPath("other", 2, path)).inputs["own"]
        plan = steer("resid_post.2", UP, when=Condition(0.1, site=at, unit=5))
        swept = client.sweep(TOKENS, LogProb(5), [[], [plan]], hooks=plan, progress=False)
        return got.gradients[at], got.measured, swept.array().values

    for ours, plain in zip(
        found("resid_post.-1", "resid_pre.-2", "resid_mid.-2"),
        found("resid_post.2", "resid_pre.1", "resid_mid.1"),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, plain)
    with pytest.raises(InvalidArgument, match=r"target 0: site resid_post.-9 names layers"):
        found("resid_post.-9", "embed", "resid_mid.1")


@both
def test_what_does_not_exist(client: Client) -> None:
    for site in ("resid_post.-4", "resid_post.-4:", "resid_post.2:-1", "resid_post.-1:1"):
        with pytest.raises(InvalidArgument, match=r"hook 0 .*the model has layers 0:3"):
            client.run(TOKENS, capture=site)
