"""Faults planted in tables whose layers differ, in mixtures and in scaled contributions: the proof finds every one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("torch")

import torch

from probewire.backends import proof as proving
from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.points import Points
from probewire.backends.model.anatomy.derive import Anatomy
from probewire.backends.model.sites import Family, Tap
from probewire.backends.torch import taps as torch_taps, trace as torch_trace
from tests.backends.derived import write
from tests.backends.uneven import UNEVEN
from tests.parity.harness import load

KINDS = (
    "gemma4_text",
    "mimo_v2_flash",
    "deepseek_v3",
    "qwen3_next",
    "lfm2",
    "granite",
    "mixtral",
    "phimoe",
    "opt",
    "nemotron_h",
)


Fault = Callable[[Family], Family]


def _taps(**taps: Tap) -> Fault:
    """These sites are there in every layer."""
    return lambda family: replace(
        family, taps={**family.taps, **taps}, own={n: o for n, o in family.own.items() if n not in taps}
    )


def _changed(name: str, **fields: Any) -> Fault:
    """A site's taps, but for some fields."""

    def change(family: Family) -> Family:
        own = {layer: replace(tap, **fields) for layer, tap in family.own.get(name, {}).items()}
        return replace(
            family, taps={**family.taps, name: replace(family.taps[name], **fields)}, own={**family.own, name: own}
        )

    return change


def _exchanged(name: str) -> Fault:
    """The layers that have their own tap of a site, and those that have the usual one."""

    def exchange(family: Family) -> Family:
        own = family.own[name]
        [other] = set(own.values())
        layers = family.where.get(name, range(4))
        swapped = {layer: family.taps[name] if layer in own else other for layer in layers}
        return replace(family, own={**family.own, name: swapped})

    return exchange


def _out(path: str, **fields: Any) -> Tap:
    return Tap(path, "output", **fields)


FAULTS: dict[str, dict[str, Fault]] = {
    "gemma4_text": {
        "attention's output before its norm": _taps(attn_out=_out("self_attn.o_proj")),
        "z in other heads": _changed("z", heads=2),
    },
    "mimo_v2_flash": {
        "the router is a dense layer's gate": _taps(router_logits=_out("mlp.gate")),
        "z in other heads": _changed("z", heads=2),
        "act is the experts' input": _taps(mlp_act=Tap("mlp.experts", "input", flat=True)),
    },
    "deepseek_v3": {
        "experts without the shared one": _taps(mlp_out=_out("mlp.experts", flat=True)),
        "the shared expert alone": _taps(mlp_out=_out("mlp.shared_experts")),
        "logits that the router has gone on with": _taps(router_logits=_out("mlp.gate", flat=True)),
        "z is what the values are made of": _taps(z=Tap("self_attn.kv_b_proj", "input")),
    },
    "qwen3_next": {
        "z behind its gate": _taps(z=Tap("self_attn.o_proj", "input")),
        "the mixers exchanged": _exchanged("attn_out"),
        "one mixer in all layers": _taps(attn_out=_out("mlp.shared_expert.down_proj")),
        "the shared expert's gate": _taps(router_logits=_out("mlp.shared_expert_gate")),
    },
    "lfm2": {
        "the mixers exchanged": _exchanged("attn_out"),
        "the middle is not written in place": _changed("resid_mid", in_place=False),
    },
    "granite": {
        "attention's scale dropped": _changed("attn_out", scale=1.0),
        "the MLP's scale dropped": _changed("mlp_out", scale=1.0),
        "the scale squared": _changed("attn_out", scale=0.25),
        "the scale the other way round": _changed("mlp_out", scale=2.0),
    },
    "mixtral": {
        "logits that the router has gone on with": _taps(router_logits=_out("mlp.gate", flat=True)),
        "logits are what the router reads": _taps(router_logits=Tap("mlp.gate", "input", flat=True)),
        "the middle is the router's input": _taps(resid_mid=Tap("mlp.gate", "input", flat=True, in_place=True)),
    },
    "phimoe": {"logits that the router has gone on with": _taps(router_logits=_out("mlp.router", flat=True))},
    "opt": {
        "the MLP's middle": _taps(mlp_out=_out("fc1", flat=True)),
        "act is the gate": _taps(mlp_act=_out("fc1", flat=True)),
        "the middle is not written in place": _changed("resid_mid", in_place=False),
    },
    "nemotron_h": {
        "experts without the shared one": _taps(mlp_out=_out("mixer.experts", flat=True)),
        "the mixer is the norm": _taps(attn_out=_out("norm")),
        "what the mixer reads is what it gives": _taps(attn_in=_out("mixer")),
    },
}


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Backend]]:
    """One of each kind, with its own table."""
    folder = tmp_path_factory.mktemp("by_layer")
    found = {kind: load("torch", write(kind, folder / kind, **UNEVEN[kind])) for kind in KINDS}
    yield found
    for backend in found.values():
        backend.close()


def proven(backend: Any, family: Family) -> proving.Proof:
    """The proof of another table on the same model."""
    anatomy: Anatomy = backend.derived
    blocks = tuple(
        replace(block, taps={name: family.tap(name, i) for name in block.taps})
        for i, block in enumerate(anatomy.blocks)
    )
    own = backend.points
    _take(backend, Points(family, "torch", own.n_heads, own.seen))
    try:
        return proving.prove(backend, blocks)
    finally:
        _take(backend, own)


def _take(backend: Any, points: Points) -> None:
    backend.points = backend.executor.points = points
    backend.attention._points.clear()  # it remembers its own


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_table_is_proven(kind: str, backends: dict[str, Backend]) -> None:
    backend: Any = backends[kind]
    found = proven(backend, backend.derived.family)
    assert found.faults == {}
    assert found.parts == ""


@pytest.mark.parametrize(("kind", "fault"), [(kind, fault) for kind, faults in FAULTS.items() for fault in faults])
def test_a_planted_fault_is_found(kind: str, fault: str, backends: dict[str, Backend]) -> None:
    backend: Any = backends[kind]
    assert proven(backend, FAULTS[kind][fault](backend.derived.family)).faults


@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3"])
@pytest.mark.parametrize("name", ["router_logits", "expert_weights"])
def test_a_router_of_the_wrong_layer_is_found(kind: str, name: str, backends: dict[str, Backend]) -> None:
    backend: Any = backends[kind]
    tap = Points._tap

    def next_layers(self: Points, site: Any) -> Any:
        path, found = tap(self, site)
        if site.name != name:
            return path, found
        layer = site.layer + 1 if site.layer < 3 else site.layer - 1
        return path.replace(f"layers.{site.layer}.", f"layers.{layer}."), found

    with mock.patch.object(Points, "_tap", next_layers):
        assert set(proven(backend, backend.derived.family).faults) & {"router_logits", "expert_weights"}


def test_weights_of_experts_in_another_order_are_found(backends: dict[str, Backend]) -> None:
    dense = torch_taps.dense_weights
    for kind in ("mixtral", "deepseek_v3", "nemotron_h"):
        backend: Any = backends[kind]
        with mock.patch.object(torch_taps, "dense_weights", lambda *given: dense(*given).flip(-1)):
            assert "expert_weights" in proven(backend, backend.derived.family).faults


def test_weights_that_the_experts_do_not_go_by_are_not_offered(tmp_path: Any) -> None:
    """Their sum is taken one by one at load: here the weights that are seen are not those that are given."""
    dense = torch_trace.dense_weights
    with mock.patch.object(torch_trace, "dense_weights", lambda *given: dense(*given).roll(1, -1)):
        backend = load("torch", write("mixtral", tmp_path, **UNEVEN["mixtral"]))
    assert backend.info.site("expert_weights") is None
    assert "not their sum" in backend.info.refused["expert_weights"]
    backend.close()


def test_rows_matched_to_other_tokens_are_found(backends: dict[str, Backend]) -> None:
    """Rows one behind the other, taken as [row, batch]: a sequence would see its neighbour's."""
    backend: Any = backends["opt"]
    own = torch_taps.Taps._tap

    def turned(self: Any, found: Any, value: Any, linear_input: Any) -> Any:
        if not found[0].flat:
            return own(self, found, value, linear_input)
        batch, rows = self.executor.layout
        new = own(self, found, value.unflatten(0, (rows, batch)).transpose(0, 1).flatten(0, 1), None)
        return new.unflatten(0, (batch, rows)).transpose(0, 1).flatten(0, 1)

    with mock.patch.object(torch_taps.Taps, "_tap", turned):
        assert proven(backend, backend.derived.family).faults


def test_a_sweep_that_needs_what_it_skips_shares_nothing(tmp_path: Any) -> None:
    """Gemma 4's last layers read keys and values of earlier ones, which a sweep's plans would leave out."""
    fields = {**UNEVEN["gemma4_text"], "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 261}
    backend = load("torch", write("gemma4_text", tmp_path, **{**fields, "num_kv_shared_layers": 2}))
    assert not backend.cuts_runs
    assert "shar" in backend.info.proof
    assert "a third term" in backend.info.refused["mlp_out"]
    assert backend.info.site("resid_mid") is not None
    backend.close()


def test_values_of_another_width_or_head_are_found(backends: dict[str, Backend]) -> None:
    """z is the probabilities times v: values of the wrong heads, or cut, are not those."""
    backend: Any = backends["mimo_v2_flash"]
    attention = type(backend.attention)
    tap = attention._tap_heads

    def turned(self: Any, point: Any, tensor: torch.Tensor) -> torch.Tensor:
        if point.side != "v" or point not in self.executor.asked:
            return tap(self, point, tensor)
        return tap(self, point, tensor.flip(1)).flip(1)

    with mock.patch.object(attention, "_tap_heads", turned):
        assert "attn_probs" in proven(backend, backend.derived.family).faults
