"""Circuits and SAEs under a change: against sweeps and arrays written out, hooks against a served variant of the same."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.circuits import Circuit, head_space
from probewire.analysis.reports.interpretability import circuit_measures, sae_measures
from probewire.analysis.reports.subject import Subject
from probewire.analysis.reports.suites import BOUNDS, checked
from probewire.analysis.reports.tried import tried
from probewire.analysis.reports.validation import validate
from probewire.analysis.tasks import agreement, fit
from probewire.clients import (
    Client,
    Delta,
    FromInput,
    Hook,
    Inline,
    LowRank,
    NextLogprob,
    Replace,
    Scale,
    Target,
    Tensor,
    Variant,
    capture,
    hook,
)
from probewire.protos.errors import InvalidArgument, NotFound

TEXTS = ["The keys to the cabinet", "A small bird landed on the fence", "When Mary went home"]
SITE = "resid_post.1"


@pytest.fixture(scope="module")
def sae(tiny: Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A ReLU SAE of a random dictionary, loaded; and its arrays."""
    lens: Any = import_module("sae_lens")
    rng, d = np.random.default_rng(3), tiny.describe().d_model
    arrays = {
        "W_enc": rng.normal(size=(d, 40)) / 8,
        "W_dec": rng.normal(size=(40, d)) / 8,
        "b_enc": rng.normal(size=40) / 10,
        "b_dec": rng.normal(size=d) / 10,
    }
    made = lens.StandardSAE(lens.StandardSAEConfig(d_in=d, d_sae=40, device="cpu"))
    made.cfg.metadata.hook_name = SITE
    torch: Any = import_module("torch")
    for name, value in arrays.items():
        getattr(made, name).data = torch.tensor(value, dtype=torch.float32)
    folder: Path = tmp_path_factory.mktemp("sae") / "planted"
    made.save_model(folder)
    tiny.load_sae(str(folder), name="planted", site=SITE)
    return arrays


def change(client: Client, strength: float) -> tuple[Variant, list[Hook]]:
    rng, info = np.random.default_rng(1), client.describe()
    delta = Delta(rng.normal(size=(info.d_mlp, 2)) * strength, rng.normal(size=(2, info.d_model)))
    return Variant({"w_down.1": delta}), [Hook("mlp_out.1", edit=LowRank(delta.a, delta.b))]


def circuit_of(client: Client) -> Circuit:
    space = head_space(client.describe())
    rng = np.random.default_rng(2)
    return Circuit.of(space, rng.random(space.shape) < 0.5, rng.random(space.shape)).with_card(
        name="heads", task={"name": "agreement"}
    )


def test_a_circuit_is_as_faithful_as_sweeps_say(tiny: Client) -> None:
    circuit = circuit_of(tiny)
    [measure], lost = circuit_measures(tiny, [circuit], -0.1, n=4)
    assert not lost
    _, hooks = change(tiny, 0.02)
    subject = Subject.of(tiny, hooks=hooks)
    found = np.asarray(measure.values([subject.base, subject]))
    task = fit(agreement(), tiny)
    for row, own in zip(found, ([], hooks), strict=True):
        values: list[list[float]] = []
        for example in task.examples[:4]:
            masks = [np.zeros_like(circuit.mask), circuit.mask, np.ones_like(circuit.mask)]
            plans = [
                [
                    hook(f"z.{layer}", Replace(FromInput("corrupt"), heads=(int(h),)))
                    for layer, kept in enumerate(mask)
                    for h in np.flatnonzero(~kept)
                ]
                for mask in masks
            ]
            inputs = [
                replace(item, name=name, source_only=name == "corrupt")
                for name, item in (("clean", task.clean[example.name]), ("corrupt", task.corrupt[example.name]))
            ]
            swept = tiny.sweep(inputs, [Target(example.metric, ("clean",))], plans, hooks=own, progress=False)
            values.append(swept.measured["clean"][:, 0].tolist())
        empty, kept, full = np.array(values).T
        np.testing.assert_allclose(row, (kept - empty.mean()) / (full.mean() - empty.mean()), rtol=1e-3, atol=1e-4)


def test_a_served_variant_is_its_hooks(tiny: Client, sae: dict[str, Any]) -> None:
    variant, hooks = change(tiny, 0.02)
    measures = [
        *circuit_measures(tiny, [circuit_of(tiny)], -0.1, n=4)[0],
        *sae_measures(tiny, ["planted"], TEXTS, BOUNDS),
    ]
    hooked = Subject.of(tiny, hooks=hooks)
    with tried(tiny, variant) as named:
        for one in measures:
            ours, theirs = (np.asarray(one.values([subject.base, subject])) for subject in (named, hooked))
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5)


def test_an_sae_explains_what_arrays_say(tiny: Client, sae: dict[str, Any]) -> None:
    _, hooks = change(tiny, 0.02)
    subject = Subject.of(tiny, hooks=hooks)
    explained, fires, lost = sae_measures(tiny, ["planted"], TEXTS, BOUNDS)
    counts: list[list[float]] = []
    for which, own in enumerate(([], hooks)):
        rows = [
            np.asarray(tiny.run(text, hooks=own, capture=SITE, progress=False)[SITE], dtype=np.float64)[1:]
            for text in TEXTS
        ]
        latents = [np.maximum((x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"], 0) for x in rows]
        made = [f @ sae["W_dec"] + sae["b_dec"] for f in latents]
        every = np.concatenate(rows)
        deviation = ((every - every.mean(axis=0)) ** 2).sum(axis=1).mean()
        wanted = [1 - ((x - y) ** 2).sum(axis=1).mean() / deviation for x, y in zip(rows, made, strict=True)]
        np.testing.assert_allclose(np.asarray(explained.values([subject.base, subject]))[which], wanted, rtol=1e-4)
        counts.append([float((f > 0).sum(axis=1).mean()) for f in latents])
        for i, (text, y) in enumerate(zip(TEXTS, made, strict=True)):
            read = capture("logits", reduce=NextLogprob())
            put = hook(SITE, Replace(Inline(Tensor.of(y.astype(np.float32)))), spans=[(1, None)])
            plain, spliced = (
                float(np.mean(tiny.run(text, hooks=[*own, *more], capture=read, progress=False)["logits"]))
                for more in ([], [put])
            )
            assert np.asarray(lost.values([subject.base, subject]))[which, i] == pytest.approx(
                plain - spliced, abs=1e-4
            )
    before, after = np.array(counts)
    np.testing.assert_allclose(
        np.asarray(fires.values([subject.base, subject])), np.abs(after - before) / before.mean(), atol=1e-6
    )
    check = checked(fires, [subject.base, subject.base])
    assert check.verdict == "pass"
    assert check.figure.value == 0


def test_a_behaviour_that_is_gone_has_no_circuit(tiny: Client) -> None:
    [measure], _ = circuit_measures(tiny, [circuit_of(tiny)], -0.1, n=4)
    dead = Subject.of(tiny, hooks=[Hook("resid_post.2", edit=Scale(0.0))])
    check = checked(measure, [dead.base, dead])
    assert check.details["behaviour_gone"]
    assert check.details["faithfulness"][1] == 0
    assert not checked(measure, [dead.base, dead.base]).details["behaviour_gone"]


def test_validation_has_the_suite_and_says_what_it_could_not_measure(tiny: Client, sae: dict[str, Any]) -> None:
    other = circuit_of(tiny).with_origin(model_hash="0" * 64, model="elsewhere")
    unknown = circuit_of(tiny).with_card(name="mine", task={"name": "my own"})
    subject = Subject.of(tiny, hooks=change(tiny, 1.0)[1])
    found = validate(
        subject,
        suites=("interpretability",),
        circuits=[other, unknown, (unknown, agreement())],
        saes=["planted"],
        progress=False,
    )
    names = [check.name for check in found.checks]
    assert names == ["circuit mine", *(f"SAE planted: {part}" for part in PARTS)]
    assert any("it is of elsewhere" in text for text in found.not_tested)
    assert any("names the task 'my own'" in text for text in found.not_tested)
    assert found.suites["interpretability"] != "pass"
    bare = validate(subject, suites=("interpretability",), progress=False)
    assert {"circuits: none was given", "SAEs: none was named"} <= set(bare.not_tested)
    with pytest.raises(NotFound, match=r"no SAEs \['mine'\]; loaded are planted"):
        validate(subject, suites=("interpretability",), saes=["mine"], progress=False)
    with pytest.raises(InvalidArgument, match="there are no suites"):
        validate(subject, suites=("interpretation",), progress=False)


PARTS = ("variance explained", "latents that fire", "loss where it is spliced in")
