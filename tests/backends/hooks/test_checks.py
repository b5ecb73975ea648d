"""What a hook says of its rows is held against each layer's own, where layers differ in size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.backends.hooks.bound import BoundPlan
from probewire.backends.hooks.metrics import bind_metric
from probewire.backends.hooks.plan import bind
from probewire.backends.hooks.points import Points
from probewire.backends.model.sites import ATTENTION_TAPS, Dims, Family, site_infos
from probewire.protos.edits import Add, FromInput, Noise, ProjectOut, Replace, Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import Coordinate
from probewire.protos.model import LayerWidths, ModelInfo
from probewire.protos.spec import Capture, Condition, Gather, Hook, Plan, TopK, Where
from probewire.protos.tensors import Tensor
from tests.backends.model.anatomy.rows import ROWS

N_LAYERS, TOKENS = 4, [7, 99, 12, 200]
_SIZES = {"n_layers": 1, "d_model": 8, "n_kv_heads": 1, "d_mlp": 16, "vocab": 300}
_SMALL = Dims(**_SIZES, n_heads=2, d_head=4)
_LARGE = Dims(**_SIZES, n_heads=3, d_head=6, d_v=5)
_NONE = Dims(**_SIZES, n_heads=0, d_head=0)
DIMS = Dims(N_LAYERS, 8, 2, 1, 4, 16, 300, by_layer=(_SMALL, _LARGE, _NONE, _SMALL))
WITH = (0, 1, 3)
FAMILY = Family("uneven", ROWS["llama", "torch"].taps, where=dict.fromkeys((*ATTENTION_TAPS, "z"), WITH))
INFO = ModelInfo(
    "tiny", "uneven", "uneven", "torch", "cpu", "float32", "sdpa", "", N_LAYERS, 8, 2, 1, 4, 16, 300,
    sites=site_infos(FAMILY, DIMS),
)  # fmt: skip


class Model:
    """As much of a backend as a plan is bound to."""

    info = INFO
    points = Points(FAMILY, "torch", 2, {})


def bound(*hooks: Hook) -> BoundPlan:
    return bind(
        Plan(hooks), Model(), mode="run", input_name="x", tokens=TOKENS, prompt_length=4, n_rows=4,
        input_lengths={"x": 4, "other": 4},
    )  # fmt: skip


def ones(*shape: int) -> Tensor:
    return Tensor.of(np.ones(shape, np.float32))


def test_describe_tells_the_widths_of_each_layer() -> None:
    z = INFO.site("z")
    assert z is not None
    assert z.layers == WITH
    assert z.widths == (2, 4)
    assert z.layer_widths == (LayerWidths((0, 3), (2, 4)), LayerWidths((1,), (3, 5)))
    assert [z.at(layer) for layer in WITH] == [(2, 4), (3, 5), (2, 4)]
    resid = INFO.site("resid_post")
    assert resid is not None
    assert resid.layer_widths == ()
    q = INFO.site("q")
    assert q is not None
    assert q.at(1) == (3, 6)


def test_every_layer_is_every_one_that_has_the_site() -> None:
    assert [str(site) for site in bound(Hook("q.*", capture=Capture())).hooks[0].sites] == ["q.0", "q.1", "q.3"]
    assert [str(site) for site in INFO.expand("resid_post.*")] == [f"resid_post.{layer}" for layer in range(N_LAYERS)]
    for name in ("q.2", "q.1:3", "attn_probs.-2:"):
        with pytest.raises(InvalidArgument, match=r"does not exist at layers \[2\]; it does at \[0, 1, 3\]"):
            bound(Hook(name, capture=Capture()))


@pytest.mark.parametrize("edit", [Scale(0.5), Noise(0.1)])
def test_what_needs_no_width_goes_to_all(edit: Any) -> None:
    assert len(bound(Hook("z.*", edit=edit)).hooks[0].sites) == 3


@pytest.mark.parametrize(
    ("name", "edit", "told"),
    [
        ("z.*", Add(ones(4)), r"z\.1.*this site's part needs \[5\] or \[3, 5\]"),
        ("z.1", Add(ones(4)), r"this site's part needs \[5\] or \[3, 5\]"),
        ("z.*", Add(ones(5)), r"z\.0.*this site's part needs \[4\] or \[2, 4\]"),
        ("q.*", ProjectOut(ones(1, 4)), r"q\.1.*4 wide, the site's part is 6 wide"),
        ("v.0", Add(ones(5)), r"needs \[4\]"),
        ("z.0", Scale(0.0, heads=(2,)), r"head 2 is outside 0 … 1"),
        ("z.0", Scale(0.0, units=(4,)), r"unit 4 is outside 0 … 3"),
        ("attn_probs.0", Scale(0.0, heads=(2,)), r"head 2 is outside 0 … 1"),
    ],
)
def test_an_edit_that_does_not_fit_some_layer_is_refused(name: str, edit: Any, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        bound(Hook(name, edit=edit))


@pytest.mark.parametrize("edit", [Add(ones(5)), Add(ones(3, 5)), Scale(0.0, heads=(2,)), Scale(0.0, units=(4,))])
def test_an_edit_that_fits_its_layer_is_taken(edit: Any) -> None:
    assert len(bound(Hook("z.1", edit=edit)).hooks) == 1


def test_rows_of_another_input_go_to_layers_of_one_size() -> None:
    patch = Replace(FromInput("other"))
    with pytest.raises(InvalidArgument, match=r"z\.0 \[2, 4\], z\.1 \[3, 5\]\); write a hook for each size"):
        bound(Hook("z.*", edit=patch, inputs=("x",)))
    assert bound(Hook("z.1", edit=patch, inputs=("x",))).hooks[0].needs == ("other", (0, 1, 2, 3))


def test_reductions_and_conditions_are_of_the_layers_own_width() -> None:
    bound(Hook("q.1", capture=Capture(reduce=TopK(6))), Hook("q.1", capture=Capture(reduce=Gather((5,)))))
    for reduce in (TopK(6), Gather((5,))):
        with pytest.raises(InvalidArgument, match=r"q\.0"):
            bound(Hook("q.*", capture=Capture(reduce=reduce)))
    when = Condition(0.0, site="q.1", unit=5, head=2)
    bound(Hook("resid_post.1", edit=Scale(0.5), where=Where(when=when)))
    with pytest.raises(InvalidArgument, match=r"head 2 is outside 0 … 1"):
        bound(Hook("resid_post.1", edit=Scale(0.5), where=Where(when=Condition(0.0, site="q.0", unit=3, head=2))))


def test_coordinates_are_of_the_layers_own_width() -> None:
    lengths = {"n_tokens": 4, "prompt_length": 4}
    bind_metric(Coordinate("z.1", 1, unit=4, head=2), INFO, **lengths, input_lengths={}, what="target")
    with pytest.raises(InvalidArgument, match=r"unit 4 is outside 0 … 3"):
        bind_metric(Coordinate("z.0", 1, unit=4, head=1), INFO, **lengths, input_lengths={}, what="target")
