"""Results in xarray and pandas: the same numbers under the names and labels that they have."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd  # pyright: ignore[reportMissingTypeStubs] - its stubs are a package of their own
import pytest
import xarray as xr
from fake_service import FakeService, expected

from probewire.clients import (
    Client,
    FailedPrecondition,
    Gather,
    InvalidArgument,
    Logit,
    LogProb,
    NamedArray,
    NotFound,
    Plan,
    Project,
    Run,
    Scale,
    TopK,
    capture,
    hook,
)

EVEN, UNEVEN = {"a": "ab", "b": "cd"}, {"a": "ab", "b": "xyz"}


@pytest.fixture
def fake() -> Client:
    return Client(service=FakeService())


def test_a_kind_of_site(fake: Client) -> None:
    run = fake.run("abc", capture=[capture("resid_post.1:", positions=[0, 2]), "attn_probs.0"])
    array = run.to_xarray("resid_post")
    assert isinstance(array, xr.DataArray)
    assert array.dims == ("layer", "pos", "d_model")
    assert array.layer.values.tolist() == [1, 2]
    assert array.pos.values.tolist() == [0, 2]
    assert array.token.values.tolist() == ["a", "c"]
    assert array.dtype == np.float32, "bfloat16 is none of numpy's own"
    np.testing.assert_array_equal(array.sel(layer=2, pos=2), expected("resid_post.2", [99])[0].astype(np.float32))
    assert array.attrs == {"site": "resid_post", "model": "fake", "model_hash": "abc123", "backend": "numpy"}
    array += 1  # a copy: it may be changed
    pattern = run.to_xarray("attn_probs.0")
    assert pattern.dims == ("head", "query", "key")
    assert pattern.token.dims == ("query",)
    assert pattern.key_token.values.tolist() == ["a", "b", "c"]
    with pytest.raises(NotFound, match="no layer of 'q'"):
        run.to_xarray("q")


def test_several_inputs(fake: Client) -> None:
    array = fake.run(EVEN, capture="resid_post.*").to_xarray("resid_post")
    assert array.dims == ("input", "layer", "pos", "d_model")
    assert array.input.values.tolist() == ["a", "b"]
    assert "token" not in array.coords
    last = fake.run(UNEVEN, capture=capture("resid_post.*", positions=-1)).to_xarray("resid_post")
    assert last.shape == (2, 3, 1, 4)
    assert "pos" not in last.coords, "the last row is at another position in each"
    assert fake.run({"a": "ab"}, capture="embed").to_xarray("embed", inputs=True).dims == ("input", "pos", "d_model")
    with pytest.raises(InvalidArgument, match="differ in shape"):
        fake.run(UNEVEN, capture="embed").to_xarray("embed")


def test_all_of_it(fake: Client) -> None:
    run = fake.run("abc", capture=["resid_post.*", "resid_mid.1", "z.0", "embed"])
    data = run.to_xarray()
    assert isinstance(data, xr.Dataset)
    assert {name: array.dims for name, array in data.data_vars.items()} == {
        "embed": ("pos", "d_model"),
        "z.0": ("pos", "head", "d_head"),
        "resid_mid.1": ("pos", "d_model"),
        "resid_post": ("layer", "pos", "d_model"),
    }
    assert data.token.values.tolist() == ["a", "b", "c"]
    with pytest.raises(InvalidArgument, match=r"the rows or layers of embed, resid_post differ.*to_xarray\('embed'\)"):
        fake.run("abc", capture=["resid_post.*", capture("embed", positions=0)]).to_xarray()


def test_rows_that_differ_are_not_filled_up(fake: Client) -> None:
    """xarray itself would join them with NaN in between."""
    run = fake.run("abc", capture=[capture("embed", positions=[0, 1]), capture("final_norm", positions=[1, 2])])
    with pytest.raises(InvalidArgument, match="the rows or layers of embed, final_norm differ"):
        run.to_xarray()


def test_reductions_have_other_axes(tiny: Client) -> None:
    reads = [
        capture("mlp_act.1", reduce="norm"),
        capture("logits", reduce=Gather((65, 7))),
        capture("logits", reduce="next_logprob", id="said"),
        capture("z.*", reduce="mean"),
        capture("embed", reduce=TopK(2)),
    ]
    run = tiny.run("abcd", capture=reads)
    assert run.to_xarray("mlp_act.1").dims == ("pos",)
    assert run.hook(1)["logits"].shape == (5, 2)
    only = tiny.run("abcd", capture=reads[1])
    assert only.to_xarray("logits").dims == ("pos", "unit")
    assert only.to_xarray("logits").unit.values.tolist() == [65, 7]
    assert run.to_xarray("said").dims == ("pos",)
    assert run.to_xarray("said").pos.values.tolist() == list(run.positions("said"))
    means = run.to_xarray("z")
    assert (means.dims, means.shape) == (("layer", "row", "head", "d_head"), (3, 1, 4, 16))
    assert not {"pos", "row"} & set(means.coords)
    with pytest.raises(InvalidArgument, match="has the parts value, index"):
        run.to_xarray("embed")
    unknown = Run(run.started, run.inputs)  # of a file that did not keep what was asked
    assert unknown.to_xarray("mlp_act.1").dims == ("axis_0",)


def test_rows_of_several_positions_are_not_counted_as_positions(tiny: Client) -> None:
    """One row of each prompt, at another place in each."""
    b = tiny.tokenize("b").token_ids[-1]
    run = tiny.run({"one": "abc", "two": "bcd"}, capture=[capture("resid_post.1", token_ids=[b])])
    assert run.inputs["one"].captures.positions("resid_post.1") != run.inputs["two"].captures.positions("resid_post.1")
    assert run.to_xarray("resid_post.1").dims == ("input", "row", "d_model")
    assert run.to_pandas("resid_post.1").index.names == ["input", "row"]


def test_projections(fake: Client) -> None:
    run = fake.run("abc", capture="embed")
    plan = Plan((capture("embed", reduce=Project(np.eye(4))),))
    projected = Run(run.started, run.inputs, replace(run.asked, plan=plan))
    assert projected.to_xarray("embed").dims == ("pos", "direction")


def test_tables(fake: Client) -> None:
    result = fake.generate(
        "ab", capture=["resid_post.*", capture("embed", reduce="norm")], max_new_tokens=2, logprobs=0
    )
    tokens = result.to_pandas()
    assert tokens.columns.tolist() == ["input", "position", "id", "token", "new", "logprob"]
    assert tokens.token.tolist() == ["a", "b", "c", "d"]
    assert tokens.new.tolist() == [False, False, True, True]
    assert tokens.logprob.tolist()[2:] == [-0.5, -1.0]
    assert tokens.logprob.isna().tolist()[:2] == [True, True]
    rows = result.to_pandas("resid_post")
    assert rows.shape == (3 * 3, 4)
    assert rows.index.names == ["layer", "pos", "token"]
    assert rows.loc[(2, 1, "b")].tolist() == expected("resid_post.2", [98])[0].astype(float).tolist()
    norms = result.to_pandas("embed")
    assert isinstance(norms, pd.Series)
    assert norms.index.names == ["pos", "token"]
    assert fake.run(EVEN, capture="embed").to_pandas("embed").index.names == ["input", "pos"]
    assert set(fake.run(UNEVEN, capture="embed").to_pandas().input) == {"a", "b"}


def test_named_arrays_and_sweeps(fake: Client) -> None:
    grid = NamedArray(np.arange(6.0).reshape(2, 3), {"layer": (4, 7), "position": ("x", "y", "z")})
    assert grid.to_xarray().sel(layer=7, position="y").item() == 4
    assert grid.to_pandas().loc[7, "y"] == 4
    assert grid.sel(layer=4).to_pandas().to_dict() == {"x": 0, "y": 1, "z": 2}
    assert grid.sel(layer=4).to_pandas().index.name == "position"
    with pytest.raises(InvalidArgument, match=r"read item\(\)"):
        grid.mean().to_pandas()
    half: Any = [[hook("embed", Scale(0.5))]] * 6
    swept = fake.sweep(
        {"x": "a", "y": "b"}, [Logit(5), LogProb(6)], half, axes={"layer": range(2), "head": range(3)}, progress=False
    )
    assert swept.to_xarray().dims == ("input", "metric", "layer", "head")
    assert swept.to_xarray().sel(input="y", metric="LogProb(6)", layer=1, head=2).item() == 98 + 50 + 1
    assert swept.to_pandas().index.names == ["input", "metric", "layer"]
    assert swept.to_pandas().loc[("y", "LogProb(6)", 1), 2] == 149


def test_what_is_missing_is_named(fake: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake.run("ab", capture="embed")
    for name, read in (("xarray", lambda: run.to_xarray("embed")), ("pandas", run.to_pandas)):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(FailedPrecondition, match=f"to_{name} needs {name}: pip install {name}"):
            read()
