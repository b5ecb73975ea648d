"""How variants are named, and what is said to those that cannot be."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from probewire.protos.conditions import AllOf, AnyOf
from probewire.protos.errors import InvalidArgument
from probewire.protos.model import Input, RunRequest
from probewire.protos.spec import Condition, Where
from probewire.protos.variants.use import VariantUse
from probewire.protos.wire.codec import from_json, from_proto, to_json, to_proto

NAMES = ["formal", "a.b_c-1@2", "ada/formal", "ada/formal@12", "sha256:0123456789ab"]
BAD = ["", "a b", "a:b", "../x", "a/b/c", "x" * 65, "a@", "a@b", "sha256:0123", "sha256:" + "g" * 12]


@pytest.mark.parametrize("name", NAMES)
def test_a_name(name: str) -> None:
    assert VariantUse(name).name == name


@pytest.mark.parametrize("name", BAD)
def test_no_name(name: str) -> None:
    with pytest.raises(InvalidArgument, match="a variant is named by"):
        VariantUse(name)


@pytest.mark.parametrize("scale", [math.nan, math.inf, 1e39, True, "1"])
def test_no_scale(scale: Any) -> None:
    with pytest.raises(InvalidArgument, match="scale must be a number"):
        VariantUse("a", scale)


@pytest.mark.parametrize(
    "when",
    [
        Condition(0.0, site="resid_pre.0", unit=1),
        Condition(0.0, unit=1, latch="last"),
        AllOf((Condition(0.0, site="embed", unit=1, latch="last"), Condition(0.0, site="embed", unit=2))),
    ],
)
def test_a_condition_of_single_rows_or_of_no_site(when: Any) -> None:
    with pytest.raises(InvalidArgument, match="each name their site and latch"):
        VariantUse("a", where=Where(when=when))


def test_at_most_eight_together() -> None:
    with pytest.raises(InvalidArgument, match="input 'input' names 9 variants"):
        Input("a", variants=(VariantUse("a"),) * 9)
    with pytest.raises(InvalidArgument, match="the request names 9 variants"):
        RunRequest((Input("a"),), variants=(VariantUse("a"),) * 9)


def test_absent_and_empty_are_two_things_on_the_wire() -> None:
    request = RunRequest((Input("a"), Input("b", name="base", variants=())), variants=(VariantUse("a", 0.5),))
    assert from_proto(RunRequest, to_proto(request)) == request == from_json(RunRequest, to_json(request))
    assert request.inputs[0].variants is None
    assert request.inputs[1].variants == ()


@pytest.mark.parametrize("given", ["formal", ["formal"], [{"name": "formal"}]])
def test_json_takes_a_name_alone(given: Any) -> None:
    request = from_json(RunRequest, {"inputs": [{"text": "a"}], "variants": given})
    assert request.variants == (VariantUse("formal"),)


def test_a_condition_goes_over_both_wires() -> None:
    both = AnyOf(
        (
            Condition(0.5, site="resid_post.1", direction=np.arange(4.0), latch="mean"),
            Condition(0.1, site="embed", unit=1, latch="last", normalise=True),
        )
    )
    use = VariantUse("v", 1.5, where=Where(when=both))
    for found in (from_proto(VariantUse, to_proto(use)), from_json(VariantUse, json.loads(json.dumps(to_json(use))))):
        assert repr(found) == repr(use)
        assert found.where.when is not None
        assert found.where.when.latched
