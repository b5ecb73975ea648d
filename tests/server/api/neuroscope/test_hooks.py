"""NeuroScope's names for places, its hooks, and those that callers have registered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fake_model import fake_info

from probewire.protos.errors import InvalidArgument, ResourceExhausted
from probewire.protos.spec import MAX_HOOKS, Capture, Hook
from probewire.server.api.neuroscope import hooks as module
from probewire.server.api.neuroscope.hooks import (
    COMPONENTS,
    NeuroHook,
    Registry,
    hooks_of,
    place_of,
    plan_hooks,
)

RESIDUAL = {"layer_name": "transformer.h.1", "component": "residual"}


def hook(name: str = "h", layer: int = 0, component: str = "mlp", **sides: bool) -> NeuroHook:
    return NeuroHook(name, place_of(f"transformer.h.{layer}", component), **sides)


def refused(read: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        read()
    return caught.value.message


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", [name for name in COMPONENTS if name != "embedding"])
@pytest.mark.parametrize("prefix", ["transformer.h", "model.layers"])
def test_a_component_of_a_layer_is_a_site_of_that_layer(prefix: str, component: str) -> None:
    place = place_of(f"{prefix}.12", component)
    output, given = COMPONENTS[component]
    assert place.site() == f"{output}.12"
    if given is None:
        assert refused(lambda: place.site(is_input=True)).startswith(
            f"{prefix}.12 {component}: its input is not a tensor of the model"
        )
    else:
        assert place.site(is_input=True) == f"{given}.12"


@pytest.mark.parametrize("name", ["transformer.wte", "model.embed_tokens"])
def test_the_embedding_has_no_layer(name: str) -> None:
    place = place_of(name, "embedding")
    assert (place.layer, place.site()) == (None, "embed")


@pytest.mark.parametrize(
    ("below", "holds"),
    [
        ("attn", {"attention", "query", "key", "value", "attention_scores", "attention_pattern"}),
        ("self_attn", {"attention", "query", "key", "value", "attention_scores", "attention_pattern"}),
        ("mlp", {"mlp", "moe", "expert"}),
    ],
)
def test_a_part_of_a_layer_holds_its_own_components(below: str, holds: set[str]) -> None:
    for component in set(COMPONENTS) - {"embedding"}:
        name = f"model.layers.3.{below}"
        if component in holds:
            assert place_of(name, component).site() == f"{COMPONENTS[component][0]}.3"
        else:
            message = refused(lambda name=name, component=component: place_of(name, component))
            assert message == f"{name} {component}: {below} holds {', '.join(sorted(holds))}"


@pytest.mark.parametrize(
    "name",
    ["", "transformer.h", "transformer.h.", "transformer.h.-1", "h.1", "transformer.h.1.ln", "transformer.h.1.mlp.x",
     "transformer.h.1\n", "transformer.h.1234567", "Transformer.h.1"],
)  # fmt: skip
def test_a_name_outside_the_dialect_is_refused_with_those_in_it(name: str) -> None:
    assert refused(lambda: place_of(name, "mlp")) == (
        f"layer_name {name!r}; allowed: transformer.h.N or model.layers.N (0-based), or transformer.wte"
    )


def test_a_component_outside_the_dialect_is_refused_with_those_in_it() -> None:
    assert refused(lambda: place_of("transformer.h.1", "neuron")) == (
        f"component 'neuron'; allowed: {', '.join(COMPONENTS)}"
    )


@pytest.mark.parametrize(("name", "component"), [("transformer.h.0", "embedding"), ("transformer.wte", "residual")])
def test_only_the_embedding_is_the_embedding(name: str, component: str) -> None:
    assert refused(lambda: place_of(name, component)) == (
        f"{name} {component}: the embedding is layer_name transformer.wte with component embedding"
    )


# ---- what a model offers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "component", "is_input", "told"),
    [
        ("transformer.h.3", "mlp", False, "transformer.h.3 mlp (mlp_out.3): fake/model has layers 0 … 2"),
        ("transformer.h.1", "moe", False, "fake/model has no experts; use mlp"),
        ("transformer.h.1", "attention_scores", False, "does not offer attn_scores while generating; its rows are"),
    ],
)
def test_what_a_model_cannot_serve_is_refused_with_the_reason(
    name: str, component: str, is_input: bool, told: str
) -> None:
    assert told in refused(lambda: place_of(name, component).check(fake_info(), is_input=is_input))


def test_a_site_that_a_model_lacks_is_refused_with_those_it_has() -> None:
    info = replace(fake_info(), n_experts=4)
    message = refused(lambda: place_of("transformer.h.1", "expert").check(info))
    assert "fake/model does not offer expert_weights; it offers embed, " in message
    none = replace(fake_info(), sites=())
    assert refused(lambda: place_of("transformer.h.1", "mlp").check(none)).endswith("it offers no sites")


def test_a_site_of_some_layers_is_refused_in_the_others() -> None:
    info = fake_info()
    sites = tuple(replace(site, layers=(0, 2)) if site.name == "mlp_out" else site for site in info.sites)
    place_of("transformer.h.2", "mlp").check(replace(info, sites=sites))
    message = refused(lambda: place_of("transformer.h.1", "mlp").check(replace(info, sites=sites)))
    assert message.endswith("fake/model offers mlp_out only in layers [0, 2]")


def test_a_hook_is_checked_on_each_side_that_it_reads() -> None:
    info = fake_info()
    sites = tuple(site for site in info.sites if site.name != "mlp_in")
    without_input = replace(info, sites=sites)
    hook().check(without_input)
    assert "does not offer mlp_in" in refused(lambda: hook(capture_input=True).check(without_input))
    place_of("transformer.wte", "embedding").check(info)


# ---- hooks of a body -------------------------------------------------------------------------------------------------


def test_a_hook_reads_the_output_under_a_name_of_its_place() -> None:
    [found] = hooks_of([RESIDUAL], "hooks")
    assert (found.hook_id, found.place.site(), found.sides) == ("transformer.h.1_residual", "resid_post.1", (False,))


def test_a_hook_may_read_both_sides_input_first() -> None:
    [found] = hooks_of([{**RESIDUAL, "hook_id": "x", "capture_input": True}], "hooks")
    assert (found.hook_id, found.sides) == ("x", (True, False))


def test_no_hooks_are_none() -> None:
    assert hooks_of(None, "hooks") == hooks_of([], "hooks") == ()


def test_the_same_hook_twice_is_one() -> None:
    assert len(hooks_of([RESIDUAL, dict(RESIDUAL), {**RESIDUAL, "capture_output": None}], "hooks")) == 1


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({}, "hooks must be a list of hooks"),
        (["x"], "hooks[0] must be an object, got 'x'"),
        ([RESIDUAL, {"component": "mlp"}], "hooks[1].layer_name is missing; it has no default"),
        ([{**RESIDUAL, "hook_id": 3}], "hooks[0].hook_id must be a string, got 3"),
        ([{**RESIDUAL, "layer": 3}], "hooks[0] has unknown fields ['layer']"),
        (
            [{**RESIDUAL, "capture_output": False}],
            "hooks[0] captures neither input nor output; set one of capture_input, capture_output",
        ),
        (
            [{**RESIDUAL, "hook_id": "x"}, {**RESIDUAL, "hook_id": "x", "component": "mlp"}],
            "hooks[1] has hook_id 'x', as another hook before it; ids must differ",
        ),
        (
            [{"layer_name": "transformer.wte", "component": "embedding", "capture_input": True}],
            "transformer.wte embedding: its input is not a tensor of the model",
        ),
    ],
)
def test_a_hook_that_cannot_be_honoured_is_refused_by_its_place_in_the_list(raw: object, told: str) -> None:
    assert refused(lambda: hooks_of(raw, "hooks")).startswith(told)


def test_our_hooks_are_a_capture_a_side_at_full_width() -> None:
    both, one = hook("a", 0, capture_input=True), hook("b", 2, "query")
    hooks, sources = plan_hooks([both, one], ("x",))
    assert hooks == [
        Hook(site, capture=Capture(dtype="float32"), inputs=("x",)) for site in ("mlp_in.0", "mlp_out.0", "q.2")
    ]
    assert sources == [(both, True), (both, False), (one, False)]
    assert plan_hooks([]) == ([], [])


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_hooks_are_their_callers_and_their_models() -> None:
    registry = Registry()
    registry.add("ada", "", [hook("any")])
    registry.add("ada", "m", [hook("mine")])
    registry.add("bob", "m", [hook("his")])
    assert [h.hook_id for h in registry.of("ada", "m")] == ["any", "mine"]
    assert [h.hook_id for h in registry.of("ada", "other")] == ["any"]
    assert [h.hook_id for h in registry.of("bob", "m")] == ["his"]
    assert registry.of("eve", "m") == ()


def test_a_hook_under_the_same_id_replaces_the_one_before() -> None:
    registry = Registry()
    registry.add("ada", "", [hook("x", 0)])
    registry.add("ada", "m", [hook("x", 1)])
    assert [h.place.layer for h in registry.of("ada", "m")] == [1], "the one for the model wins"
    registry.add("ada", "m", [hook("x", 2)])
    assert [h.place.layer for h in registry.of("ada", "m")] == [2]
    assert [h.place.layer for h in registry.of("ada", "")] == [0]


def test_forgetting_is_for_one_model_or_for_all() -> None:
    registry = Registry()
    for model in ("", "m", "n"):
        registry.add("ada", model, [hook(model or "any")])
    registry.add("bob", "m", [hook("his")])
    registry.clear("ada", "m")
    assert [h.hook_id for h in registry.of("ada", "m")] == ["any"]
    assert [h.hook_id for h in registry.of("ada", "n")] == ["any", "n"]
    registry.clear("ada", "")
    assert registry.of("ada", "n") == ()
    assert [h.hook_id for h in registry.of("bob", "m")] == ["his"]
    registry.clear("nobody", "m")


def test_a_caller_registers_so_many_and_one_too_many_changes_nothing() -> None:
    registry = Registry()
    registry.add("ada", "", [hook(f"a{i}") for i in range(MAX_HOOKS - 1)])
    with pytest.raises(ResourceExhausted, match=f"a caller may register {MAX_HOOKS} hooks"):
        registry.add("ada", "m", [hook("b"), hook("c")])
    assert len(registry.of("ada", "m")) == MAX_HOOKS - 1
    registry.add("ada", "m", [hook("b")])
    registry.add("ada", "m", [hook("b", 2)])


def test_only_so_many_callers_have_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLERS", 2)
    registry = Registry()
    for name in ("ada", "bob"):
        registry.add(name, "", [hook()])
    with pytest.raises(ResourceExhausted, match="2 callers hold registered hooks, the most there may be"):
        registry.add("eve", "", [hook()])
    registry.add("ada", "m", [hook("more")])
    registry.clear("bob", "")
    registry.add("eve", "", [hook()])


def test_whose_last_hooks_are_forgotten_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLERS", 1)
    registry = Registry()
    registry.add("ada", "m", [hook()])
    registry.clear("ada", "m")
    registry.add("bob", "m", [hook()])
