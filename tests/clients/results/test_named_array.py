"""Arrays whose axes have names and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.clients import InvalidArgument, NamedArray

VALUES = np.arange(24.0).reshape(2, 3, 4)
AXES: dict[str, Any] = {"prompt": ("a", "b"), "layer": range(3), "position": (3, 5, 7, -1)}


@pytest.fixture
def array() -> NamedArray:
    return NamedArray(VALUES, AXES)


def test_what_it_is(array: NamedArray) -> None:
    assert (array.shape, array.dims, len(array)) == ((2, 3, 4), ("prompt", "layer", "position"), 2)
    assert array.axes["layer"] == (0, 1, 2)
    assert array.axis("position") == 2
    assert NamedArray(np.ones(3, np.float32), {"x": "abc"}).values.dtype == np.float64
    assert repr(array).startswith("NamedArray(prompt (2), layer (3), position (4))\n[[[")
    assert NamedArray(np.float64(2), {}).shape == ()


@pytest.mark.parametrize(
    ("values", "axes"), [(VALUES, {"a": (1, 2)}), (VALUES, {**AXES, "layer": (1, 2)}), (1.0, {"a": (1, 2)})]
)
def test_values_that_do_not_fit(values: Any, axes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"values of shape \[.*\] do not fit axes a \(2\)|layer \(2\)"):
        NamedArray(values, axes)


def test_a_label_takes_its_axis_away(array: NamedArray) -> None:
    found = array.sel(layer=1, position=-1)
    assert (found.dims, found.axes) == (("prompt",), {"prompt": ("a", "b")})
    np.testing.assert_array_equal(found.values, VALUES[:, 1, 3])
    assert array.sel(prompt="b", layer=np.int64(2), position=5).item() == VALUES[1, 2, 1]
    assert float(array.sel(prompt="a", layer=0, position=3)) == 0.0


@pytest.mark.parametrize("wanted", [[2, 0], (2, 0), np.array([2, 0])])
def test_several_labels_keep_it_in_the_order_asked(array: NamedArray, wanted: Any) -> None:
    found = array.sel(layer=wanted, prompt="b")
    assert found.axes == {"layer": (2, 0), "position": (3, 5, 7, -1)}
    np.testing.assert_array_equal(found.values, VALUES[1][[2, 0]])
    np.testing.assert_array_equal(array.sel(layer=range(1, 3)).values, VALUES[:, 1:])
    assert array.sel(layer=[1]).shape == (2, 1, 4)


def test_a_label_may_be_a_tuple() -> None:
    grid = NamedArray([[1.0, 2.0], [3.0, 4.0]], {"head": [(0, 1), (2, 5)], "x": "ab"})
    assert grid.sel(head=(2, 5)).values.tolist() == [3, 4]
    assert grid.sel(head=[(2, 5), (0, 1)], x="a").values.tolist() == [3, 1]


def test_labels_and_axes_that_are_not_there(array: NamedArray) -> None:
    with pytest.raises(InvalidArgument, match=r"axis 'layer' has no \[3\]; it has 0, 1, 2"):
        array.sel(layer=3)
    with pytest.raises(InvalidArgument, match=r"axis 'position' has no \[0, 1\]; it has 3, 5, 7, -1"):
        array.sel(position=[0, 3, 1])
    for call in (lambda: array.sel(lyer=1), lambda: array.mean("lyer"), lambda: array.axis("lyer")):
        with pytest.raises(
            InvalidArgument, match=r"no axis 'lyer'; there are prompt \(2\), layer \(3\), position \(4\)"
        ):
            call()
    many = NamedArray(np.zeros(40), {"x": range(40)})
    with pytest.raises(InvalidArgument, match="10, 11, …"):
        many.sel(x=40)


@pytest.mark.parametrize("name", ["mean", "sum", "max"])
def test_reductions(array: NamedArray, name: str) -> None:
    reduce = getattr(np, name)
    one = getattr(array, name)("layer")
    assert one.dims == ("prompt", "position")
    np.testing.assert_array_equal(one.values, reduce(VALUES, axis=1))
    np.testing.assert_array_equal(getattr(array, name)("position", "prompt").values, reduce(VALUES, axis=(0, 2)))
    np.testing.assert_array_equal(getattr(array, name)("layer", "layer").values, one.values)
    assert getattr(array, name)().item() == reduce(VALUES)


def test_axes_in_another_order(array: NamedArray) -> None:
    turned = array.transpose("position", "prompt", "layer")
    assert turned.dims == ("position", "prompt", "layer")
    np.testing.assert_array_equal(turned.values, VALUES.transpose(2, 0, 1))
    assert turned.sel(layer=2, prompt="b", position=7).item() == array.sel(layer=2, prompt="b", position=7).item()
    for names in (("layer",), ("layer", "layer", "prompt"), ("layer", "prompt", "x")):
        with pytest.raises(InvalidArgument, match="transpose needs each axis once"):
            array.transpose(*names)


def test_one_value_or_none(array: NamedArray) -> None:
    assert NamedArray([[4.0]], {"a": "x", "b": "y"}).item() == 4.0
    for call in (array.item, lambda: float(array)):
        with pytest.raises(InvalidArgument, match="there are 24 values, not one"):
            call()


def test_it_is_an_array_to_numpy(array: NamedArray) -> None:
    np.testing.assert_array_equal(np.asarray(array), VALUES)
    assert np.asarray(array, dtype=np.float32).dtype == np.float32
    copied = np.array(array)
    copied[:] = 0
    assert array.values.any()
    assert np.abs(array).max() == 23
