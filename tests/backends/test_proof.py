"""A proof that passes says something: tables with one fault planted in each, and every fault is found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core
import pytest
import torch

from probewire.backends import proof as proving
from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.points import Points
from probewire.backends.mlx import attention as mlx_attention, cache as mlx_cache
from probewire.backends.model.anatomy.derive import derive
from probewire.backends.model.sites import Family, Tap
from probewire.backends.torch import anatomy as torch_anatomy, attention as torch_attention
from tests.backends.derived import SIZES, derived, write
from tests.tiny_models import FAMILIES, tiny_checkpoint

GATE_UP = "mlp.gate_proj", "mlp.up_proj"
FAULTS: dict[str, dict[str, dict[str, Tap]]] = {
    "llama": {
        "attention's output is the MLP's": {"attn_out": Tap("mlp.down_proj", "output")},
        "the MLP's output is attention's": {"mlp_out": Tap("self_attn.o_proj", "output")},
        "both outputs exchanged": {
            "attn_out": Tap("mlp.down_proj", "output"),
            "mlp_out": Tap("self_attn.o_proj", "output"),
        },
        "the middle is the start": {"resid_mid": Tap("input_layernorm", "input", in_place=True)},
        "the middle is not written in place": {"resid_mid": Tap("post_attention_layernorm", "input")},
        "the middle is the norm's output": {"resid_mid": Tap("post_attention_layernorm", "output")},
        "the start is the norm's output": {"resid_pre": Tap("input_layernorm", "output")},
        "the end is the MLP's output": {"resid_post": Tap("mlp", "output")},
        "the end is the start": {"resid_post": Tap("", "input")},
        "attention reads what the MLP reads": {"attn_in": Tap("post_attention_layernorm", "output")},
        "the MLP reads what attention reads": {"mlp_in": Tap("input_layernorm", "output")},
        "attention's rows of the stream are written in place": {
            "attn_resid": Tap("input_layernorm", "input", in_place=True)
        },
        "the MLP's rows of the stream are written in place": {
            "mlp_resid": Tap("post_attention_layernorm", "input", in_place=True)
        },
        "the MLP's rows are attention's": {"mlp_resid": Tap("input_layernorm", "input")},
        "gate and up exchanged": {"mlp_gate": Tap(GATE_UP[1], "output"), "mlp_up": Tap(GATE_UP[0], "output")},
        "act is up": {"mlp_act": Tap(GATE_UP[1], "output")},
        "gate is up": {"mlp_gate": Tap(GATE_UP[1], "output")},
        "up is gate": {"mlp_up": Tap(GATE_UP[0], "output")},
        "z is the queries": {"z": Tap("self_attn.q_proj", "output")},
    },
    "gemma2": {
        "attention before its norm": {"attn_out": Tap("self_attn.o_proj", "output")},
        "the MLP before its norm": {"mlp_out": Tap("mlp.down_proj", "output")},
        "the middle at the norm behind attention": {
            "resid_mid": Tap("post_attention_layernorm", "input", in_place=True)
        },
        "the MLP reads the norm behind attention": {"mlp_in": Tap("post_attention_layernorm", "output")},
    },
    "phi3": {
        "halves exchanged": {
            "mlp_gate": Tap("mlp.gate_up_proj", "output", part=(1, 2)),
            "mlp_up": Tap("mlp.gate_up_proj", "output", part=(0, 2)),
        },
        "one half twice": {"mlp_up": Tap("mlp.gate_up_proj", "output", part=(0, 2))},
    },
    "gpt_neox": {
        "the MLP's input is attention's too": {"mlp_in": Tap("input_layernorm", "output")},
        "attention's input is the MLP's too": {"attn_in": Tap("post_attention_layernorm", "output")},
        "outputs exchanged": {
            "attn_out": Tap("mlp.dense_4h_to_h", "output"),
            "mlp_in": Tap("attention", "input"),
        },
        "act is the gate": {"mlp_act": Tap("mlp.dense_h_to_4h", "output")},
    },
}


@pytest.fixture(scope="module", params=["torch", "mlx"])
def backends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Backend]]:
    """One of each kind, with its own table."""
    folder, library = tmp_path_factory.mktemp("proof"), request.param
    found = {kind: derived(tiny_checkpoint(kind, folder), backend=library) for kind in ("llama", "gemma2", "phi3")}
    neox = write("gpt_neox", folder / "neox", **{**SIZES, "intermediate_size": 256})
    found["gpt_neox"] = derived(neox, backend=library)
    yield found
    for backend in found.values():
        backend.close()


def proven(backend: Any, family: Family) -> proving.Proof:
    """The proof of another table on the same model."""
    anatomy = backend.derived
    blocks = tuple(
        replace(block, taps={name: tap for name, tap in family.taps.items() if name in block.taps})
        for block in anatomy.blocks
    )
    own = backend.points
    library = backend.info.backend
    _take(backend, Points(family, library, own.n_heads, own.seen, changeable=library == "mlx"))
    try:
        return proving.prove(backend, blocks)
    finally:
        _take(backend, own)


def _take(backend: Any, points: Points) -> None:
    backend.points = backend.executor.points = points
    remembered = "_points" if backend.info.backend == "torch" else "points"
    getattr(backend.attention, remembered).clear()


@pytest.mark.parametrize("kind", FAULTS)
def test_the_true_table_is_proven(kind: str, backends: dict[str, Backend]) -> None:
    backend: Any = backends[kind]
    found = proven(backend, backend.derived.family)
    assert found.faults == {}
    assert found.parts == ""
    assert found.checks > 50


@pytest.mark.parametrize(("kind", "fault"), [(kind, fault) for kind, faults in FAULTS.items() for fault in faults])
def test_a_planted_fault_is_found(kind: str, fault: str, backends: dict[str, Backend]) -> None:
    backend: Any = backends[kind]
    family = backend.derived.family
    assert proven(backend, replace(family, taps={**family.taps, **FAULTS[kind][fault]})).faults


@dataclass(frozen=True, slots=True)
class Shifted(Family):
    """Off by one layer."""

    def layer_path(self, backend: str, layer: int) -> str:
        return Family.layer_path(self, backend, layer + 1)


def test_a_table_off_by_one_layer_is_found(backends: dict[str, Backend]) -> None:
    backend: Any = backends["llama"]
    family = backend.derived.family
    shifted = Shifted(**{name: getattr(family, name) for name in Family.__dataclass_fields__})
    assert proven(backend, shifted).faults


def test_probabilities_that_are_not_those_used_are_found(backends: dict[str, Backend]) -> None:
    backend: Any = backends["llama"]
    attention = torch_attention if backend.info.backend == "torch" else mlx_attention
    softmax: Any = attention._softmax
    with mock.patch.object(attention, "_softmax", lambda scores, sinks: softmax(scores * 0.9, sinks)):
        assert "attn_probs" in proven(backend, backend.derived.family).faults


def test_parts_that_see_a_key_too_many_are_found(backends: dict[str, Backend]) -> None:
    backend: Any = backends["llama"]
    hidden, causal = torch_attention._hidden_keys, mlx_cache.create_causal_mask

    def late(position: int, *rest: Any) -> torch.Tensor:
        return hidden(position + 1, *rest)

    def later(n: int, offset: int = 0, **rest: Any) -> Any:
        return causal(n, offset=offset, **rest) | (mlx.core.arange(offset + n) == offset + n - 1)

    with (
        mock.patch.object(torch_attention, "_hidden_keys", late),
        mock.patch.object(mlx_cache, "create_causal_mask", later),
    ):
        assert "in parts" in proven(backend, backend.derived.family).parts


def test_attention_of_ours_that_drops_a_mask_or_a_softcap_is_not_used(tmp_path: Any) -> None:
    stock, ours = torch_attention.sdpa_attention_forward, torch_attention._eager

    def unmasked(module: Any, q: Any, k: Any, v: Any, mask: Any, **kwargs: Any) -> Any:
        return stock(module, q, k, v, torch.zeros(1, 1, q.shape[2], k.shape[2]), **{**kwargs, "is_causal": False})

    def uncapped(*args: Any, softcap: Any = None, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    for kind, name, other in (("llama", "sdpa_attention_forward", unmasked), ("gemma2", "_eager", uncapped)):
        with mock.patch.object(torch_attention, name, other):
            backend = derived(tiny_checkpoint(kind, tmp_path))
        assert backend.info.attention == "eager"
        assert "attn_probs" in backend.info.refused
        assert backend.info.generate  # with the model's own
        assert "not every layer calls the attention function once" in backend.info.generate_note
        backend.close()


def test_logits_that_are_scaled_and_not_understood_leave_no_table(tmp_path: Any) -> None:
    folder = write("granite", tmp_path, **SIZES, logits_scaling=2.0)
    with mock.patch.object(torch_anatomy, "head_scales", return_value=[1.0]):
        backend = derived(folder)
    assert backend.derived is None
    assert backend.info.sites == ()
    backend.close()


def test_what_does_not_hold_is_not_offered_nor_what_works_there(tmp_path: Any) -> None:
    """Its site, the rules of gradients that need it, another name of the same tensor; and no run is cut that may not be."""
    failed = proving.Proof(faults=dict.fromkeys(("mlp_gate", "q", "resid_pre"), "it moved"), parts="they differ")
    with mock.patch("probewire.backends.selfcheck.prove", return_value=failed):
        backend = derived(tiny_checkpoint("llama", tmp_path))
    info = backend.info
    for name in ("mlp_gate", "q", "resid_pre", "embed"):
        assert info.site(name) is None
        assert info.refused[name] == "it moved"
    assert info.site("k") is not None
    assert info.rules == ("ln",)
    assert not backend.cuts_runs
    assert info.proof.endswith("runs are not cut: they differ")
    backend.close()


@pytest.mark.parametrize("library", ["torch", "mlx"])
@pytest.mark.parametrize("kind", [*FAMILIES])
def test_every_site_is_tried_at_load(kind: str, library: str, tmp_path: Path) -> None:
    backend = derived(tiny_checkpoint(kind, tmp_path), backend=library)
    assert " checks at " in backend.info.proof
    assert set(backend.info.refused) <= {"mlp_act"}  # of a mixture
    backend.close()


@pytest.mark.parametrize("library", ["torch", "mlx"])
def test_a_site_that_does_not_hold_on_a_model_is_not_offered(library: str, tmp_path: Path) -> None:
    def planted(*args: Any, **kwargs: Any) -> Any:
        found = derive(*args, **kwargs)
        wrong = {**found.family.taps, "attn_out": Tap("mlp.down_proj", "output", linear=True)}
        return replace(found, family=replace(found.family, taps=wrong))

    with mock.patch(f"probewire.backends.{library}.anatomy.derive", planted):
        backend = derived(tiny_checkpoint("llama", tmp_path), backend=library)
    assert backend.info.site("attn_out") is None
    assert "attn_out" in backend.info.refused
    backend.close()
