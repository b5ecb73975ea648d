"""What is written is what is read: ROME's equation through the server, spreads over layers, sequences, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from probewire.analysis.editing import (
    Fact,
    Question,
    edit_facts,
    edit_sequence,
    inject_facts,
    locate_fact,
    measure_facts,
    second_moment,
    target_value,
    variant_hooks,
)
from probewire.analysis.editing.keys import fact_rows, preserved_keys
from probewire.analysis.editing.wording import worded
from probewire.clients import Client, Variant
from probewire.protos.errors import FailedPrecondition, InvalidArgument, Unsupported
from probewire.protos.variants.delta import Delta

NEIGHBOURS = tuple(
    Question(f"The job of {name} is", " clerk", name, held_out)
    for name, held_out in (("Bob", False), ("Eve", False), ("Kim", True))
)
ADA = Fact("Ada", "The job of {} is", " pilot", " nurse", neighbours=NEIGHBOURS)
MAX = Fact("Max", "The job of {} is", " cook", neighbours=NEIGHBOURS)
FAST: dict[str, Any] = {"value": {"steps": 3}, "prefixes": ("", "Note. ")}


def output(client: Client, text: str, subject: str, layer: int, hooks: Any = ()) -> Any:
    """`mlp_out` at the subject's last token."""
    at = worded(client, text, text.index(subject) + len(subject), "")
    run = client.run(list(at.ids), capture=[f"mlp_out.{layer}"], hooks=hooks)
    return np.asarray(run[f"mlp_out.{layer}"], dtype=np.float64)[at.position]


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_the_value_comes_out_at_the_key(clients: dict[str, Client], backend: str) -> None:
    client = clients[backend]
    value = target_value(client, ADA, 1, steps=3, prefixes=("",))
    edited = edit_facts(client, ADA, method="rome", layers=1, values=[value], prefixes=("",))
    [solved] = edited.solved.values()
    assert np.linalg.norm(solved.dense @ value.key - value.delta) / np.linalg.norm(value.wanted) < 1e-10
    served = output(client, ADA.asked, "Ada", 1, edited.hooks)
    assert np.linalg.norm(served - value.wanted) / np.linalg.norm(value.wanted) < 1e-5
    assert edited.variant.deltas["w_down.1"].rank == 1
    weight = np.asarray(client.weights("model.layers.1.mlp.down_proj.weight"), dtype=np.float64)
    share = edited.variant.manifest.norms["w_down.1"]["relative_norm"]
    assert share == pytest.approx(float(np.linalg.norm(solved.dense) / np.linalg.norm(weight)), rel=1e-5)
    assert "of ‖W‖" in str(edited)


def test_neighbours_that_may_be_preserved_are(tiny: Client) -> None:
    edited = edit_facts(tiny, [ADA, MAX], layers=1, **FAST)
    size = np.linalg.norm(edited.values[0].delta)
    for name in ("Bob", "Eve"):
        text = f"The job of {name} is"
        moved = output(tiny, text, name, 1, edited.hooks) - output(tiny, text, name, 1)
        assert np.linalg.norm(moved) / size < 1e-5
    moved = output(tiny, "The job of Kim is", "Kim", 1, edited.hooks) - output(tiny, "The job of Kim is", "Kim", 1)
    assert np.linalg.norm(moved) / size > 1e-4  # held out: nothing holds it
    assert edited.variant.deltas["w_down.1"].rank == 2
    assert "2 keys of neighbours preserved" in edited.notes[-1]


def test_a_neighbour_about_an_edited_subject_is_not_preserved(tiny: Client) -> None:
    bob = Fact("Bob", "The job of {} is", " cook", neighbours=NEIGHBOURS)
    keys = preserved_keys(tiny, [ADA, bob], 1)
    assert keys is not None
    assert keys.shape == (96, 1)
    plain = Fact("Ada", "The job of {} is", " pilot", neighbours=(Question("A b", held_out=False),))
    every = preserved_keys(tiny, [plain], 1)  # no subject: every token but the first
    assert every is not None
    assert every.shape == (96, 3)


def test_a_spread_over_layers_reaches_the_stream_that_was_wanted(tiny: Client) -> None:
    values = [target_value(tiny, fact, 2, steps=3, prefixes=("",)) for fact in (ADA, MAX)]
    edited = edit_facts(tiny, [ADA, MAX], layers=[0, 1, 2], values=values, prefixes=("",))
    assert list(edited.variant.deltas) == ["w_down.0", "w_down.1", "w_down.2"]
    before, after = (
        fact_rows(tiny, [ADA, MAX], ["resid_post.2"], ("",), hooks=hooks)["resid_post.2"]
        for hooks in ([], edited.hooks)
    )
    wanted = before + np.stack([one.delta for one in values])
    # The last layer writes all that is missing by then, so the sum is exact however the layers before it went.
    assert np.abs(after - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_every_method_gives_a_variant_of_this_model(tiny: Client) -> None:
    moments = second_moment(tiny, [f"the {i} of it and of {i * i}" for i in range(80)], "mlp_act.1", progress=False)
    value = target_value(tiny, ADA, 1, steps=3, prefixes=("",))
    for method in ("exact", "rome", "memit", "null_space"):
        edited = edit_facts(
            tiny, ADA, method=method, layers=1, moments=moments, values=[value], prefixes=("",), name=f"ada-{method}"
        )
        assert edited.variant.manifest.base.model_hash == tiny.describe().model_hash
        assert edited.variant.manifest.method == method
        assert edited.variant.manifest.data["records"] == 1
        assert edited.variant.deltas["w_down.1"].rank == 1
        assert "pilot" not in str(edited.variant.manifest.to_json())  # no texts


def test_moments_that_know_no_neighbour_are_told(tiny: Client) -> None:
    value, kept = target_value(tiny, ADA, 1, steps=2, prefixes=("",)), preserved_keys(tiny, [ADA], 1)
    taken = second_moment(tiny, ["a b c d"], "mlp_act.1", progress=False)
    assert kept is not None
    width, unit = len(kept), kept / np.linalg.norm(kept, axis=0)
    for second, silent in ((np.eye(width), False), (np.eye(width) + 1e4 * unit @ unit.T, True)):
        site = replace(taken["mlp_act.1"], n=10 * width, second=second)
        moments = replace(taken, sites={"mlp_act.1": site})
        edited = edit_facts(tiny, ADA, layers=1, moments=moments, values=[value], prefixes=("",))
        assert any("does not speak of the neighbours" in note for note in edited.notes) != silent


def test_fine_tuning_is_gradient_descent_on_the_matrix(tiny: Client) -> None:
    edited = edit_facts(tiny, ADA, method="finetune", layers=1, value={"steps": 30, "lr": 0.05, "ball": 10.0})
    assert edited.variant.manifest.options["loss"] < 5.0
    assert edited.variant.deltas["w_down.1"].norm() <= 10.0 * (1 + 1e-6)
    assert edited.hooks[0].site == "mlp_out.1"


def test_facts_that_nobody_knew_are_injected(tiny: Client) -> None:
    edited = inject_facts(tiny, MAX, **FAST)
    assert edited.layers == (0,)
    assert "choose_layer" in edited.notes[0]
    with pytest.raises(InvalidArgument, match="edit_facts changes what it knows"):
        inject_facts(tiny, ADA)


def test_a_sequence_keeps_what_went_before(tiny: Client) -> None:
    heard: list[int] = []
    found = edit_sequence(
        tiny,
        [ADA, MAX],
        layers=1,
        unrelated=["so"],
        on_point=lambda point: heard.append(point.n_edits),
        progress=False,
        **FAST,
    )
    assert heard == [1, 2]
    assert found.variant.deltas["w_down.1"].rank == 2
    alone = edit_facts(tiny, ADA, layers=1, **FAST)
    first = fact_rows(tiny, [ADA], ["mlp_out.1"], FAST["prefixes"], hooks=alone.hooks)["mlp_out.1"]
    both = fact_rows(tiny, [ADA], ["mlp_out.1"], FAST["prefixes"], hooks=variant_hooks(found.variant))["mlp_out.1"]
    assert np.abs(first - both).max() < 1e-5 * np.abs(first).max()
    assert "2  efficacy" in str(found)


def test_tracing_says_where_a_fact_is(tiny: Client) -> None:
    found = locate_fact(tiny, ADA, seeds=2, window=1)
    assert "".join(found.tokens[p] for p in found.subject).strip() == "Ada"
    assert found.per_seed.values.shape[:3] == (2, 1, 3)
    with pytest.raises(InvalidArgument, match="has no true target"):
        locate_fact(tiny, MAX)


def test_what_is_refused(tiny: Client) -> None:
    value = target_value(tiny, ADA, 1, steps=1, prefixes=("",))
    other = Fact("Ada", "The job of {} is", " cook")
    with pytest.raises(InvalidArgument, match=r"layer 1: the keys cannot be told apart .* 0: 'The job of Ada is'"):
        edit_facts(tiny, [ADA, other], method="rome", layers=1, **FAST)
    with pytest.raises(InvalidArgument, match="the edit needs those of its own 1 facts, in order, at layer 2"):
        edit_facts(tiny, ADA, layers=2, values=[value])
    with pytest.raises(InvalidArgument, match="method 'mend'; allowed: exact"):
        edit_facts(tiny, ADA, method="mend")
    with pytest.raises(InvalidArgument, match="no facts"):
        edit_facts(tiny, [])
    moments = second_moment(tiny, ["a b c d"], "mlp_act.1", progress=False)
    with pytest.raises(FailedPrecondition, match="take them anew"):
        edit_facts(tiny, ADA, moments=type(moments)(moments.sites, "x", "0", "", ()))
    with pytest.raises(Unsupported, match="load the variant"):
        variant_hooks(Variant({"w_up.0": Delta(np.ones((2, 1)), np.ones((1, 2)))}))


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_served_variant_is_its_hooks(clients: dict[str, Client], backend: str) -> None:
    client = clients[backend]
    edited = edit_facts(client, ADA, layers=1, name="ada", **FAST)
    client.load_variant(edited.variant, name="ada")
    under: list[dict[str, Any]] = [{"variant": "ada"}, {"hooks": edited.hooks}]
    try:
        served, hooked = (measure_facts(client, ADA, unrelated=["so it is"], n_generated=0, **one) for one in under)
        runs = [client.run(ADA.asked, capture=["mlp_out.1", "logits"], **one) for one in under]
    finally:
        client.unload_variant("ada")
    for site in ("mlp_out.1", "logits"):
        one, other = (np.asarray(run[site], dtype=np.float64) for run in runs)
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()
    assert served.efficacy == hooked.efficacy
    assert served.unrelated_kl is not None
    assert hooked.unrelated_kl is not None
    assert served.unrelated_kl.value == pytest.approx(hooked.unrelated_kl.value, rel=1e-3, abs=1e-7)
