"""Hypothesis strategies for plans and what is measured under them: everything that the contract has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from probewire.protos.edits import (
    Add,
    Affine,
    Clamp,
    Constant,
    FromInput,
    Inline,
    LowRank,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Stored,
    Zeros,
)
from probewire.protos.gradients import RULES, GradientsRequest, IntegratedPath
from probewire.protos.latents import LatentChange, Latents, ReadLatents
from probewire.protos.metrics import (
    Coordinate,
    Kl,
    Logit,
    LogitDifference,
    LogProb,
    Measured,
    Target,
    TopLogits,
    WeightedSum,
)
from probewire.protos.model import Input
from probewire.protos.sites import GLOBAL_SITES, LAYER_SITES
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
from probewire.protos.sweeps import SweepRequest
from probewire.protos.tensors import DTYPES, FLOAT_DTYPES, Tensor

numbers = st.floats(-1e6, 1e6, allow_nan=False, width=64)
positive = st.integers(0, 1 << 40)
names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


def tensors(*dims: int, dtypes: tuple[str, ...] = FLOAT_DTYPES) -> st.SearchStrategy[Tensor]:
    """Finite, non-zero tensors with one of the given numbers of axes, in any of the dtypes."""

    def build(drawn: tuple[Any, str]) -> Tensor:
        array, dtype = drawn
        return Tensor.of((np.abs(array) + 0.5).astype(DTYPES[dtype]))

    shapes = st.sampled_from(dims).flatmap(lambda n: hnp.array_shapes(min_dims=n, max_dims=n, max_side=4))
    arrays = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32)))
    return st.tuples(arrays, st.sampled_from(dtypes)).map(build)


def distinct(elements: st.SearchStrategy[int]) -> st.SearchStrategy[tuple[int, ...] | None]:
    """A tuple of distinct indices, or None."""
    return st.none() | st.lists(elements, min_size=1, max_size=4, unique=True).map(tuple)


parts = {"units": distinct(positive), "heads": distinct(positive)}
sources = st.one_of(
    st.builds(Zeros),
    st.builds(Constant, tensors(0, 1, 2)),
    st.builds(Inline, tensors(2, 3)),
    st.builds(Stored, names),
    st.builds(FromInput, names, distinct(st.integers(-50, 50))),
)
changes = st.one_of(
    st.builds(LatentChange, positive, set=numbers, active=st.booleans()),
    st.builds(LatentChange, positive, add=numbers, active=st.booleans()),
    st.builds(LatentChange, positive, scale=numbers),
    st.builds(LatentChange, positive, min=st.floats(-5, 0), max=st.floats(0, 5) | st.none()),
)
edits = st.one_of(
    st.builds(Add, tensors(1, 2), numbers, st.booleans(), **parts),
    st.builds(Scale, numbers, **parts),
    st.builds(Replace, sources, **parts),
    st.builds(ProjectOut, tensors(1, 2), **parts),
    st.builds(Clamp, st.none() | tensors(1, 2), min=numbers, max=st.none(), **parts),
    st.builds(Noise, st.floats(0, 100), positive, **parts),
    st.integers(1, 3).flatmap(
        lambda r: st.builds(
            LowRank,
            st.just(Tensor.of(np.ones((4, r), dtype=np.float32))),
            st.just(Tensor.of(np.ones((r, 5), dtype=np.float32))),
            numbers,
        )
    ),
    st.integers(1, 3).flatmap(
        lambda r: st.builds(
            Affine,
            st.just(Tensor.of(np.ones((4, r), dtype=np.float32))),
            st.just(Tensor.of(np.ones((r, 4), dtype=np.float32))),
            st.none() | st.just(Tensor.of(np.ones(r, dtype=np.float32))),
            numbers,
            **parts,
        )
    ),
    st.builds(
        Latents,
        st.just("sae"),
        st.lists(changes, min_size=1, max_size=3, unique_by=lambda c: c.id).map(tuple),
        st.booleans(),
    ),
    st.just(Latents("sae", (), error=False)),
)
reductions = st.one_of(
    st.builds(Last),
    st.builds(Mean),
    st.builds(Norm),
    st.builds(TopK, st.integers(1, 100)),
    st.builds(Project, tensors(1, 2)),
    st.builds(Gather, st.lists(positive, min_size=1, max_size=3, unique=True).map(tuple)),
    st.builds(NextLogprob, st.integers(0, 20)),
    st.builds(ReadLatents, st.just("sae"), st.none() | st.integers(1, 64)),
    st.builds(ReadLatents, st.just("sae"), ids=distinct(positive)),
)
captures = st.builds(Capture, st.booleans(), st.none() | st.sampled_from(FLOAT_DTYPES), st.none() | reductions)
captures |= st.just(Capture(store=True)) | st.builds(
    Capture,
    dtype=st.none() | st.sampled_from(FLOAT_DTYPES),
    reduce=st.none() | reductions.filter(lambda reduce: not isinstance(reduce, NextLogprob)),
    gradient=st.just(True),
)
sites = st.one_of(
    st.sampled_from(list(GLOBAL_SITES)),
    st.tuples(st.sampled_from(list(LAYER_SITES)), st.sampled_from(["0", "31", "*", "2:9", ":4", "7:"])).map(".".join),
    st.just("module:model.layers.3.self_attn.o_proj:input"),
)
conditions = st.builds(
    Condition,
    numbers,
    st.sampled_from(["", "embed", "z.2"]),
    st.sampled_from(["gt", "ge", "lt", "le"]),
    unit=positive,
    head=st.none() | positive,
    latch=st.none(),
) | st.builds(
    Condition,
    numbers,
    direction=tensors(1),
    latch=st.sampled_from([None, "last", "mean"]),
    normalise=st.booleans(),
)
several = st.lists(conditions, min_size=1, max_size=8).map(tuple)
whens = st.one_of(st.none(), conditions, st.builds(AllOf, several), st.builds(AnyOf, several))
spans = st.lists(st.builds(Span, st.integers(-9, 9), st.none() | st.integers(-9, 9)), min_size=1, max_size=3).map(tuple)
wheres = st.one_of(
    st.builds(Where, positions=distinct(st.integers(-50, 50)), token_ids=distinct(positive), when=whens),
    st.builds(Where, spans=spans, phase=st.sampled_from(["all", "generated"]), when=whens),
)
hooks = st.builds(
    Hook,
    sites,
    edits,
    st.none() | captures,
    wheres,
    st.none() | st.lists(names, min_size=1, max_size=2).map(tuple),
)
plans = st.builds(Plan, st.lists(hooks, max_size=4).map(tuple))

positions = st.integers(-50, 50)
token_lists = st.lists(positive, min_size=1, max_size=3, unique=True).map(tuple)
of_logits = st.one_of(
    st.builds(Logit, positive, positions, st.booleans()),
    st.builds(Logit, st.none(), positions, st.booleans(), token_lists),
    st.builds(LogProb, st.none(), positions, token_lists),
    st.builds(LogitDifference, token_lists, token_lists, positions),
    st.builds(TopLogits, st.integers(1, 100), positions, st.booleans()),
    st.builds(LogProb, positive, positions),
    st.builds(Kl, names, positions, st.none() | positions),
)
sums = st.lists(st.tuples(of_logits, numbers), min_size=1, max_size=3).map(
    lambda found: WeightedSum(tuple(metric for metric, _ in found), tuple(weight for _, weight in found))
)
metrics = st.one_of(
    of_logits,
    sums,
    st.builds(Coordinate, st.sampled_from(["mlp_act.3", "embed"]), positions, positive, st.none() | positive),
    st.builds(Coordinate, st.just("z.1"), positions, head=positive, direction=tensors(1)),
)
paths = st.builds(IntegratedPath, names, st.integers(1, 64), st.sampled_from(["embed", "resid_mid.2"]))
rules = st.lists(st.sampled_from(RULES), max_size=4).map(tuple)
_inputs = st.lists(names, min_size=1, max_size=3, unique=True).map(
    lambda found: tuple(Input(token_ids=(1, i), name=name, source_only=i > 1) for i, name in enumerate(found))
)


def _targets(inputs: tuple[Input, ...], most: int) -> st.SearchStrategy[tuple[Target, ...]]:
    """For each input that is measured some of its own, or now and then the same for all."""
    measured = [item.name for item in inputs if not item.source_only]
    each = [
        st.lists(st.builds(Target, metrics, st.just((name,))), min_size=1, max_size=most).map(tuple)
        for name in measured
    ]
    return st.tuples(*each).map(lambda found: sum(found, ())) | metrics.map(lambda metric: (Target(metric),))


gradients_requests = _inputs.flatmap(
    lambda inputs: st.builds(
        GradientsRequest,
        st.just(inputs),
        _targets(inputs, 1),
        names,
        plans,
        rules,
        st.booleans(),
        st.none() | paths,
    )
)
edit_plans = st.builds(Plan, st.lists(hooks.map(lambda hook: replace(hook, capture=None)), max_size=3).map(tuple))
sweep_requests = _inputs.flatmap(
    lambda inputs: st.builds(
        SweepRequest,
        st.just(inputs),
        _targets(inputs, 3),
        st.lists(edit_plans, min_size=1, max_size=3).map(tuple),
        names,
        edit_plans,
        st.booleans(),
    )
)
measured = st.builds(Measured, names, tensors(2, dtypes=("float64",)), st.lists(positive, max_size=4).map(tuple))
