"""Site names: layers counted from the end are those of the model, and nothing else changes its meaning."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import Coordinate
from probewire.protos.sites import Site, SitePattern
from probewire.protos.spec import Condition, Hook


def layers(text: str, n_layers: int) -> list[int | None]:
    return [site.layer for site in SitePattern.parse(text).expand(n_layers)]


@given(st.integers(1, 50), st.data())
def test_spans_of_layers_are_those_of_a_list(n: int, data: st.DataObject) -> None:
    bound = st.none() | st.integers(-n - 2, n + 2)
    start, stop = data.draw(bound), data.draw(bound)
    text = f"z.{'' if start is None else start}:{'' if stop is None else stop}"
    assert str(SitePattern.parse(text)) == (text if (start, stop) != (None, None) else "z.*")
    whole = list(range(n))
    expected = whole[start:stop]
    inside = all(b is None or -n <= b <= n for b in (start, stop)) and expected
    # Python's slices begin at 0 with a start of 0 to n − 1; a stop of 0 chooses nothing, here and there.
    if inside:
        assert layers(text, n) == expected
    else:
        with pytest.raises(InvalidArgument, match=f"layers 0:{n}"):
            layers(text, n)


@given(st.integers(1, 50), st.integers(-60, 60))
def test_one_layer_is_that_of_a_list(n: int, layer: int) -> None:
    text = f"resid_post.{layer}"
    assert str(SitePattern.parse(text)) == text
    if -n <= layer < n:
        assert layers(text, n) == [list(range(n))[layer]]
        assert Site.parse(text, n) == Site("resid_post", list(range(n))[layer])
    else:
        with pytest.raises(InvalidArgument, match=rf"site {text} names layers .*the model has layers 0:{n}"):
            Site.parse(text, n)


def test_other_names_for_it() -> None:
    assert layers("blocks.-1.hook_resid_post", 30) == [29]
    assert layers("blocks.-2.attn.hook_z", 30) == [28]
    assert Hook("blocks.-1.hook_resid_pre", capture=None, edit=_scale()).site == "resid_pre.-1"
    for text in ("resid_post.--1", "resid_post.-", "resid_post.1:2:3", "embed.-1", "resid_post.-*"):
        with pytest.raises(InvalidArgument):
            SitePattern.parse(text)


def test_one_site_is_never_half_known() -> None:
    """A layer of −1 as it stands would sort before all others, and look like a layer."""
    with pytest.raises(InvalidArgument, match="counts layers from the end, and how many there are is not known here"):
        Site.parse("resid_post.-1")
    assert Site.canonical("blocks.-1.hook_resid_post") == "resid_post.-1"
    assert Coordinate("resid_post.-1", -1, unit=3).site == "resid_post.-1"
    assert Condition(0.0, site="resid_post.-2", unit=1).site == "resid_post.-2"
    for text in ("resid_post.-2:", "resid_post.*"):
        with pytest.raises(InvalidArgument, match="stands for several sites"):
            Site.canonical(text)


def _scale():
    from probewire.protos.edits import Scale

    return Scale(2.0)
