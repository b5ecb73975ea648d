"""reference = torch = mlx: every site and every edit, on tiny random models of every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends import reference
from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.checks import edit_name
from probewire.protos.edits import (
    Add,
    Affine,
    Clamp,
    Constant,
    Edit,
    Inline,
    LowRank,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Zeros,
)
from probewire.protos.model import SiteInfo
from probewire.protos.sites import ATTENTION_SITES, HEAD_SITES
from probewire.protos.spec import (
    AllOf,
    AnyOf,
    Capture,
    Condition,
    Gather,
    Hook,
    Last,
    Mean,
    NextLogprob,
    Norm,
    Plan,
    Project,
    Span,
    TopK,
    Where,
)
from probewire.protos.tensors import Tensor
from tests.parity.harness import TOLERANCE, Captured, Key, assert_same, every_site, load, run
from tests.tiny_models import FAMILIES, tiny_checkpoint

TOKENS = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3, 250, 88, 41]
N = len(TOKENS)
PROMPT = 10
OVERRIDES: dict[tuple[str, str], dict[str, Any]] = {}
RNG = np.random.default_rng(0)

Backends = dict[str, Backend]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(family, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def meaning(folder: Path) -> reference.ReferenceModel:
    return reference.load(folder)


@pytest.fixture(scope="module", params=["torch", "mlx"])
def backend(request: pytest.FixtureRequest, folder: Path) -> Any:
    made = load(request.param, folder)
    yield made
    made.close()


def _same_as_reference(backend: Backend, meaning: reference.ReferenceModel, plan: Plan) -> dict[Key, Captured]:
    found = run(backend, TOKENS, plan, prompt_length=PROMPT)
    captures = reference.run(meaning, TOKENS, plan, prompt_length=PROMPT).captures
    expected = {key: Captured(tuple(c.positions), c.values) for key, c in captures.items()}
    assert_same(found, expected, TOLERANCE["float32"])
    return found


def test_every_site(backend: Backend, meaning: reference.ReferenceModel) -> None:
    found = _same_as_reference(backend, meaning, every_site(backend))
    assert {key[1].split(".")[0] for key in found} == {site.name for site in backend.info.sites}


def test_both_backends_offer_the_same_sites(folder: Path) -> None:
    one, other = (load(name, folder) for name in ("torch", "mlx"))
    assert {s.name: s.edits for s in one.info.sites} == {s.name: s.edits for s in other.info.sites}
    for made in (one, other):
        made.close()


def _vector(*shape: int) -> Any:
    """An array, where our values' fields say Tensor."""
    return RNG.normal(size=shape).astype(np.float32)


def _edits(site: SiteInfo, d_in: dict[str, int]) -> list[Edit]:
    """Every edit the site takes, in its variants of part and shape."""
    if site.name in ATTENTION_SITES:
        inline = np.abs(_vector(site.widths[0], N, N))
        return [
            Scale(0.5, heads=(1,)),
            Replace(Zeros(), units=(2, 5)),
            Add(_vector(2), units=(0, 3)),
            Clamp(min=0.05, max=0.4, heads=(0, 2)),
            Replace(Inline(inline)),
            Replace(Inline(np.abs(_vector(site.widths[0], N, 2))), units=(1, 4)),
            Replace(Inline(np.abs(_vector(2, N, 2))), units=(4, 1), heads=(0, 2)),
            Replace(Constant(Tensor.of(0.25)), units=(0, 3)),
            Replace(Constant(Tensor.of(0.25)), heads=(1,)),
            Replace(Constant(np.abs(_vector(2))), units=(6, 3)),
        ]
    width = site.widths[-1]
    heads = site.widths[0] if site.name in HEAD_SITES else None
    rows = (N, width) if heads is None else (N, heads, width)
    edits: list[Edit] = [
        Add(_vector(width), 0.7),
        Add(_vector(width), 0.3, norm_match=True),
        Add(_vector(2), units=(3, 1)),
        Scale(-0.5),
        Replace(Zeros(), units=(0, 2)),
        Replace(Constant(_vector(width))),
        Replace(Constant(Tensor.of(-0.4)), units=(0, 2)),
        Replace(Inline(_vector(*rows))),
        ProjectOut(_vector(2, width)),
        Clamp(_vector(2, width), min=-0.1, max=0.2),
        Clamp(min=-0.2),
        Noise(0.3, seed=5),
        Affine(_vector(width, 2), _vector(2, width), _vector(2), 0.3),
    ]
    if heads is not None:
        edits += [
            Add(_vector(heads, width)),
            Scale(0.0, heads=(1,)),
            Noise(0.2, heads=(0,), units=(1, 2)),
            ProjectOut(_vector(1, width), heads=(1,)),
            Affine(_vector(2, 3), _vector(3, 2), heads=(1,), units=(3, 0)),
        ]
    if "low_rank" in site.edits:
        edits.append(LowRank(_vector(d_in[site.name], 2), _vector(2, width), 0.2))
    return edits


def _d_in(backend: Backend) -> dict[str, int]:
    info = backend.info
    return {
        "attn_out": info.n_heads * info.d_head,
        "mlp_out": info.d_mlp,
        "mlp_gate": info.d_model,
        "mlp_up": info.d_model,
    }


WHOLE_PRODUCT = ("llama", "gemma2")
"""Families for which every edit meets every site; elsewhere each site meets three edits, and each edit some site."""


def test_every_edit_at_every_site(backend: Backend, meaning: reference.ReferenceModel, family: str) -> None:
    """One layer's worth: each edit at each site of the middle layer, read at the site itself and at the end."""
    seen: set[str] = set()
    for index, site in enumerate(backend.info.sites):
        name = site.name if site.layers is None else f"{site.name}.1"
        edits = _edits(site, _d_in(backend)) if site.edits else []
        if family not in WHOLE_PRODUCT:
            edits = [edit for i, edit in enumerate(edits) if (i - index) % 5 == 0 or isinstance(edit, LowRank)]
        for edit in edits:
            end = () if name == "logits" else (Hook("logits", capture=Capture()),)
            _same_as_reference(backend, meaning, Plan((Hook(name, edit=edit, capture=Capture()), *end)))
            seen.add(edit_name(edit))
    linear = {"low_rank"} if any("low_rank" in s.edits for s in backend.info.sites) else set[str]()
    assert seen == {"add", "scale", "replace", "project_out", "clamp", "noise", "affine"} | linear


WHERES = [
    Where(positions=(0, 3, -1)),
    Where(spans=(Span(2, 5), Span(-2))),
    Where(phase="prompt"),
    Where(phase="generated"),
    Where(token_ids=(200, 41)),
    Where(when=Condition(0.0, unit=3)),
    Where(when=Condition(0.1, site="resid_pre.0", unit=3, op="lt")),
    Where(when=Condition(0.0, site="z.0", unit=1, head=2, op="le")),
    Where(when=Condition(0.0, site="mlp_in.1", direction=np.ones(64, dtype=np.float32), op="ge")),
    Where(when=Condition(0.0, unit=7, latch="last")),
    Where(when=Condition(0.0, site="attn_out.0", unit=7, latch="mean", op="lt")),
    Where(when=Condition(0.1, unit=3, normalise=True)),
    Where(when=Condition(0.02, site="z.0", unit=4, head=2, op="lt", normalise=True, latch="mean")),
    Where(when=AllOf((Condition(0.0, unit=3), Condition(0.0, site="resid_pre.0", unit=5)))),
    Where(when=AnyOf((Condition(0.0, unit=3), Condition(0.0, site="embed", unit=5), Condition(0.5, unit=0)))),
    Where(when=AnyOf((Condition(0.5, unit=3), Condition(-9.0, site="attn_out.0", unit=7, latch="last")))),
]


def test_every_where(backend: Backend, meaning: reference.ReferenceModel) -> None:
    for where in WHERES:
        hook = Hook("resid_post.1", edit=Add(_vector(64), 0.8), capture=Capture(), where=where)
        _same_as_reference(backend, meaning, Plan((hook, Hook("logits", capture=Capture()))))


REDUCTIONS = [Last(), Mean(), Norm(), TopK(3), Project(_vector(2, 64))]


def test_every_reduction(backend: Backend, meaning: reference.ReferenceModel) -> None:
    hooks = [Hook("resid_mid.1", capture=Capture(reduce=reduce)) for reduce in REDUCTIONS]
    hooks += [
        Hook("z.1", capture=Capture(reduce=Norm())),
        Hook("z.1", capture=Capture(reduce=TopK(2))),
        Hook("logits", capture=Capture(reduce=Gather((5, 9, 200)))),
        Hook("logits", capture=Capture(reduce=NextLogprob())),
    ]
    _same_as_reference(backend, meaning, Plan(tuple(hooks)))


def test_a_cast_capture(backend: Backend, meaning: reference.ReferenceModel) -> None:
    plan = Plan((Hook("resid_post.0", edit=Scale(2.0), capture=Capture(before=True, dtype="float16")),))
    found = run(backend, TOKENS, plan)
    assert found[0, "resid_post.0", ""].values.dtype == np.float16
    captures = reference.run(meaning, TOKENS, plan).captures
    expected = {key: Captured(tuple(c.positions), c.values) for key, c in captures.items()}
    assert_same(found, expected, TOLERANCE["float16"])


def test_hooks_apply_in_order(backend: Backend, meaning: reference.ReferenceModel) -> None:
    add, scale = Hook("resid_post.0", edit=Add(_vector(64))), Hook("resid_post.0", edit=Scale(0.5), capture=Capture())
    raw = Hook("resid_post.0", capture=Capture(before=True))
    pre = Hook("resid_pre.1", edit=Scale(3.0), capture=Capture())
    end = Hook("logits", capture=Capture())
    for order in ((add, scale, raw, pre, end), (scale, add, pre, raw, end), (pre, scale, add, end)):
        _same_as_reference(backend, meaning, Plan(order))
