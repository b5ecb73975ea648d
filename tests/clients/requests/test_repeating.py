"""Results keep what was asked, in files too, and can be asked again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fake_service import FakeService

from probewire.clients import (
    Client,
    FailedPrecondition,
    Generation,
    Gradients,
    Input,
    IntegratedPath,
    Kl,
    LogProb,
    NotFound,
    Run,
    Sweep,
    ablate,
    capture,
    edit_latents,
    load,
    patch,
    reconstruct,
    steer,
)
from probewire.protos.model import Event, ModelInfo, ResolvedHook, RunRequest, Sampling, Started

SITE = "resid_post.1"
UP = np.linspace(-1, 1, 64)


@pytest.fixture
def fake() -> Client:
    return Client(service=FakeService())


def through_a_file(result: Any, tmp_path: Path) -> Any:
    return load(result.save(tmp_path / "result.safetensors"))


def test_what_was_asked_is_kept(fake: Client, tmp_path: Path) -> None:
    hooks = [
        steer(SITE, np.array([3, 4, 0, 0], ml_dtypes.bfloat16), alpha=3, id="up"),
        patch("embed", value=np.ones((1, 4)), positions=0),
    ]
    result = fake.generate({"x": "ab"}, hooks=hooks, capture=SITE, max_new_tokens=2, temperature=0.7, seed=4, stop="q")
    again = through_a_file(result, tmp_path)
    for found in (result, again):
        assert found.asked.sampling == Sampling(2, temperature=0.7, seed=4, stop=("q",))
        assert found.plan.hooks == (*hooks, capture(SITE))
        assert found.asked.inputs == (Input(text="ab", name="x"),)
        assert (found.started.model_hash, found.started.versions) == ("abc123", {"numpy": np.__version__})
        edit: Any = found.plan.hooks[0].edit
        assert edit.vector.dtype == "bfloat16"
    assert repr(again) == repr(result)
    assert repr(result).splitlines()[2:5] == [
        "  sampling      temperature 0.7 · seed 4",
        "  edit          resid_post.1  add 3·v, ‖v‖ 5 · id 'up'",
        "  edit          embed  replace by rows sent along, [1, 4] · positions 0",
    ]


def test_a_plan_is_readable(fake: Client) -> None:
    run = fake.run(
        "ab", hooks=[steer(SITE, [3.0, 4.0, 0, 0], 2.0), ablate("z.0", heads=[1])], capture=["embed", "logits"]
    )
    assert repr(run.plan).splitlines() == [
        "Plan of 4 hooks",
        "  0  resid_post.1  add 2·v, ‖v‖ 5",
        "  1  z.0           replace by zeros, heads 1",
        "  2  embed         capture",
        "  3  logits        capture",
    ]


def test_results_of_before_say_what_they_lack(fake: Client, tmp_path: Path) -> None:
    run = Run(*(getattr(fake.run("ab", capture="embed"), name) for name in ("started", "inputs")))
    again = through_a_file(run, tmp_path)
    with pytest.raises(NotFound, match="a version that did not keep what was asked"):
        _ = again.plan
    assert again.answered == ("input",)
    with pytest.raises(NotFound):
        fake.repeat(again)


def test_asked_again_it_is_the_same(tiny: Client, tmp_path: Path) -> None:
    """Sampled without a seed of ours, edited, from a file."""
    hooks = [steer(SITE, UP, 2.0, inputs="b"), patch("resid_post.0", from_input="s", positions=1, inputs="a")]
    inputs = {"s": Input(text="source", source_only=True), "a": "abc", "b": [256, 9, 12]}
    result = tiny.generate(inputs, hooks=hooks, capture=SITE, max_new_tokens=6, temperature=1.0)
    again = tiny.repeat(through_a_file(result, tmp_path))
    assert isinstance(again, Generation)
    for name in ("a", "b"):
        assert again.inputs[name].token_ids == result.inputs[name].token_ids
        assert again.inputs[name].seed == result.inputs[name].seed
        np.testing.assert_allclose(again.inputs[name][SITE], result.inputs[name][SITE], rtol=1e-9, atol=1e-12)
    other = tiny.generate(inputs, hooks=hooks, max_new_tokens=6, temperature=1.0, seed=result.inputs["a"].seed)
    assert other.inputs["a"].token_ids != result.inputs["a"].token_ids, "input 1 samples with seed + 1"


def test_every_kind_can_be_asked_again(tiny: Client, tmp_path: Path) -> None:
    base, path = Input(token_ids=(256, 1, 2), name="base", source_only=True), IntegratedPath("base", 2)
    inputs = [base, Input(token_ids=(256, 5, 6), name="own")]
    run = tiny.run([[256, i % 7, 3] for i in range(66)], hooks=ablate("mlp_out.1"), capture=SITE)
    gradients = tiny.gradients(inputs, Kl("base"), at=SITE, rules=["ln"], path=path)
    swept = tiny.sweep(inputs, [Kl("base"), LogProb(3)], [[], [ablate("mlp_out.0")]], progress=False, axes={"x": "ab"})
    for result, kind in ((run, Run), (gradients, Gradients), (swept, Sweep)):
        again = tiny.repeat(through_a_file(result, tmp_path), progress=False)
        assert type(again) is kind
        assert again.asked == replace(result.asked, model=result.started.model)
    np.testing.assert_allclose(tiny.repeat(run).stack(SITE), run.stack(SITE), rtol=1e-9, atol=1e-12)
    again = tiny.repeat(gradients)
    np.testing.assert_allclose(again.stack(SITE, of="gradients"), gradients.stack(SITE, of="gradients"), rtol=1e-9)
    np.testing.assert_allclose(tiny.repeat(swept).array().values, swept.array().values, rtol=1e-9)
    assert tiny.repeat(swept).axes == swept.axes


# ---- refused, where it would be another thing ------------------------------------------------------------------------


class Moved(FakeService):
    """The same server later: other weights, another tokenizer, another SAE."""

    model_hash, sae_hash, shift = "abc123", "aa", 0

    def describe(self, model: str = "") -> ModelInfo:
        return replace(super().describe(model), model_hash=self.model_hash)

    def run(self, request: RunRequest) -> Iterator[Event]:
        for event in super().run(request):
            if isinstance(event, Started):
                hooks = tuple(self._resolved(hook, request) for hook in event.hooks)
                begun = tuple(replace(b, token_ids=tuple(i + self.shift for i in b.token_ids)) for b in event.inputs)
                yield replace(event, hooks=hooks, inputs=begun, model_hash=self.model_hash)
            else:
                yield event

    def _resolved(self, hook: ResolvedHook, request: RunRequest) -> ResolvedHook:
        return replace(hook, saes={"mine": self.sae_hash}) if request.plan.hooks[hook.hook].edit is not None else hook


@pytest.mark.parametrize(
    ("change", "value", "why"),
    [
        ("model_hash", "other", r"of model fake \(abc123\), and fake is another one \(other\)"),
        ("sae_hash", "bb", r"the SAEs \['mine'\] have other weights"),
        ("shift", 1, r"the inputs \['input'\] are other tokens"),
    ],
)
def test_another_model_is_refused_unless_told(change: str, value: Any, why: str) -> None:
    service = Moved()
    client = Client(service=service)
    result = client.run("ab", hooks=edit_latents(SITE, "mine", {3: 1.0}), capture="embed")
    client.repeat(result)
    setattr(service, change, value)
    with pytest.raises(FailedPrecondition, match=why):
        client.repeat(result)
    assert isinstance(client.repeat(result, force=True), Run)


def test_a_session_is_not_in_the_result(fake: Client) -> None:
    with fake.session(steer("resid_post.1", [1.0, 0, 0, 0], 2.0)) as live:
        result = fake.generate("a", session=live, max_new_tokens=2)
        with pytest.raises(
            FailedPrecondition, match=r"followed the live session 'ses-1', whose hooks it does not hold"
        ):
            fake.repeat(result)
        assert fake.repeat(result, force=True).text == result.text


def test_a_model_of_another_name(fake: Client) -> None:
    result = fake.run("ab", capture="embed")
    renamed = Run(replace(result.started, model="elsewhere"), result.inputs, result.asked)
    with pytest.raises(NotFound, match="no model 'elsewhere'"):
        fake.repeat(renamed)
    assert fake.repeat(renamed, model="fake").started.model == "fake"


def test_files_of_before_this_version_still_load(fake: Client, tmp_path: Path) -> None:
    """Written by the version of e229add: the same format, without what was asked."""
    import json

    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = fake.run("ab", capture="embed").save(tmp_path / "new.safetensors")
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    told = json.loads(metadata["result"])
    del told["asked"]
    save_file(tensors, tmp_path / "old.safetensors", {**metadata, "result": json.dumps(told)})
    old = load(tmp_path / "old.safetensors")
    assert isinstance(old, Run)
    assert old["embed"].shape == (2, 4)


def test_saes_may_be_named(fake: Client, tmp_path: Path) -> None:
    result = fake.run("ab", hooks=reconstruct(SITE, "mine"), capture=capture("embed", latents="mine", top_k=2))
    assert through_a_file(result, tmp_path).plan == result.plan
    assert "latents of 'mine': reconstruction" in repr(result.plan)
    assert "capture the top 2 latents of 'mine'" in repr(result.plan)
