"""Conditions that combine, worked out from captured values: which rows are reached, on each backend and in batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from probewire.clients import (
    AllOf,
    AnyOf,
    Capture,
    Captures,
    Condition,
    Hook,
    Input,
    InvalidArgument,
    NotFound,
    Where,
    capture,
    patch,
)
from probewire.protos.conditions import When
from probewire.protos.tensors import Tensor
from tests.parity.opened import OTHER, TOKENS, Opened, both

RNG = np.random.default_rng(5)
DIRECTION = RNG.normal(size=64).astype(np.float32)
HEAD = RNG.normal(size=16).astype(np.float32)
SITES = ["embed", "resid_pre.1", "z.1", "mlp_out.1"]
OPS = {"gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal}

PARTS = [
    Condition(0.0, unit=3),
    Condition(0.0, site="embed", direction=Tensor.of(DIRECTION), op="lt"),
    Condition(0.05, site="resid_pre.1", unit=7, normalise=True),
    Condition(-0.1, site="z.1", direction=Tensor.of(HEAD), head=2, op="ge", normalise=True),
]
LATCHED = [
    Condition(0.0, site="embed", unit=2, latch="last"),
    Condition(0.01, site="resid_pre.1", direction=Tensor.of(DIRECTION), latch="mean", normalise=True, op="lt"),
]


def _true_at(one: Condition, values: dict[str, Any], n_prompt: int) -> np.ndarray[Any, Any]:
    """[pos], from the definition."""
    rows = np.asarray(values[one.site or "mlp_out.1"], dtype=np.float64)
    rows = rows if one.head is None else rows[:, one.head]
    if one.unit is not None:
        direction = np.eye(rows.shape[1])[one.unit]
    else:
        assert one.direction is not None
        direction = np.asarray(one.direction.floats(), float)
    coordinate = rows @ direction
    if one.normalise:
        coordinate = coordinate / (np.linalg.norm(rows, axis=1) * np.linalg.norm(direction))
    if one.latch is not None:
        prompt = coordinate[:n_prompt]
        coordinate = np.full(len(rows), prompt[-1] if one.latch == "last" else prompt.mean())
    assert np.abs(coordinate - one.threshold).min() > 1e-5, "too near the threshold to tell backends' rounding apart"
    return OPS[one.op](coordinate, one.threshold)


def _expected(when: When, values: dict[str, Any], n_prompt: int, n: int) -> list[int]:
    found = np.array([_true_at(one, values, n_prompt) for one in when.parts])
    true: Any = found.any(axis=0) if isinstance(when, AnyOf) else found.all(axis=0)
    return [p for p in range(n_prompt if when.latched else 0, n) if true[p]]


def _reached(captures: Captures, name: str, site: str) -> list[int]:
    """Positions that a hook's capture has; none where it sent nothing."""
    try:
        return list(captures.hook(name).positions(site))
    except NotFound:
        return []


def _combinations(parts: Sequence[Condition]) -> list[When]:
    pairs = [pair for pair in product(parts, repeat=2) if pair[0] is not pair[1]]
    return [
        *parts,
        *(kind(pair) for kind in (AllOf, AnyOf) for pair in pairs),
        AllOf(tuple(parts)),
        AnyOf(tuple(parts)),
    ]


@both
@pytest.mark.parametrize("latched", [False, True])
def test_the_truth_table(opened: Opened, backend: str, latched: bool) -> None:
    """Three inputs of their own lengths in one request; with `latched` the last rows count as generated."""
    client = opened("llama", backend, "float32")
    prompts = {"a": (TOKENS, 9), "b": (OTHER[:11], 6), "c": ([9, 9, 14, 200, 7, 33, 102], 5)}
    whens = _combinations([*PARTS[:2], *LATCHED] if latched else PARTS)
    hooks = [Hook("mlp_out.1", capture=Capture(), where=Where(when=when), id=str(i)) for i, when in enumerate(whens)]
    inputs = {name: Input(token_ids=tuple(tokens), prompt_length=n) for name, (tokens, n) in prompts.items()}
    found = client.run(inputs, hooks=hooks, capture=SITES).inputs
    seen: set[tuple[int, ...]] = set()
    for name, (tokens, n_prompt) in prompts.items():
        captures = found[name].captures
        values = {site: captures[site] for site in SITES[:3]}
        values["mlp_out.1"] = client.run(tokens, capture="mlp_out.1")["mlp_out.1"]
        for i, when in enumerate(whens):
            expected = _expected(when, values, n_prompt, len(tokens))
            assert _reached(captures, str(i), "mlp_out.1") == expected, (name, when)
            seen.add(tuple(expected))
    assert len(seen) >= 10, "the conditions decide alike: nothing was told apart"


@both
def test_a_cosine_of_zeros_is_zero_and_of_large_rows_is_no_other(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    rows = np.stack([np.zeros(64), 1e30 * DIRECTION, -1e-30 * DIRECTION, DIRECTION]).astype(np.float32)
    hooks = [patch("final_norm", value=rows, positions=[0, 1, 2, 3])]
    hooks += [
        capture("final_norm", id=name, when=Condition(at, op=op, direction=Tensor.of(DIRECTION), normalise=True))
        for name, at, op in (("zero", 0.0, "ge"), ("one", 0.99, "gt"), ("minus one", -0.99, "lt"))
    ]
    captures = client.run(TOKENS[:4], hooks=hooks).captures
    assert [_reached(captures, name, "final_norm") for name in ("zero", "one", "minus one")] == [[0, 1, 3], [1, 3], [2]]


def test_values_that_cannot_be() -> None:
    one = Condition(0.0, unit=3)
    with pytest.raises(InvalidArgument, match="1 to 8 conditions, got 9"):
        AllOf((one,) * 9)
    with pytest.raises(InvalidArgument, match="1 to 8 conditions, got 0"):
        AnyOf(())
    with pytest.raises(InvalidArgument, match="one level deep, got a AnyOf"):
        AllOf((one, AnyOf((one,))))
    with pytest.raises(InvalidArgument, match="direction that is zero"):
        Condition(0.0, direction=Tensor.of([0.0, 0.0]), normalise=True)
    with pytest.raises(InvalidArgument, match="cannot apply to it"):
        Where(phase="prompt", when=AnyOf((one, LATCHED[0])))
