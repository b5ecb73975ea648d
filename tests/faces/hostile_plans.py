"""Requests that are well formed as protobuf and mostly nonsense as plans: drawn so that many get as far as a forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from probewire.protos import probewire_pb2 as pb
from probewire.protos.sites import GLOBAL_SITES, LAYER_SITES

__all__ = ["generate_requests", "plans", "run_requests"]

WIDTHS: dict[str, tuple[int, ...]] = {
    **{name: (64,) for name in (*LAYER_SITES, *GLOBAL_SITES)},
    **{name: (4, 16) for name in ("q", "z")},
    **{name: (2, 16) for name in ("k", "v")},
    **{name: (96,) for name in ("mlp_gate", "mlp_up", "mlp_act")},
    "logits": (261,),
}
"""Of the tiny llama; what it does not offer has some width all the same."""
MODULES = {
    "model.embed_tokens": 64,
    "model.layers.0": 64,
    "model.layers.1.self_attn.q_proj": 64,
    "model.layers.1.self_attn": 64,
    "model.layers.2.mlp.gate_proj": 96,
    "model.layers": 64,
    "model.rotary_emb": 16,
    "model.norm": 64,
    "model": 64,
    "lm_head": 261,
    "nothing.here": 64,
}
LAYERS = (".0", ".1", ".2", ".*", ".0:2", ".:", ".3", ".2:1", ".99999999999999999999", ".-1", "")
INTEGERS = (0, 1, 2, 3, 4, 5, 15, 16, 63, 64, 95, 260, 261, -1, -4, -5, 2**31, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, 1.0, -1.0, 0.5, 3.0, 1e-40, 1e30, -3e38, 1e300, float("nan"), float("inf"), float("-inf"))
FINITE = (0.0, 1.0, -1.0, 0.25, 7.0, 1e-40, 1e30, -3e38)
DTYPES = ("float32", "float32", "float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool", "complex64", "")

Strategy = st.SearchStrategy[Any]
integers = st.sampled_from(INTEGERS)
small = st.sampled_from((0, 1, 2, 3))
floats = st.sampled_from(FINITE + FINITE + FLOATS)


def mostly(good: Strategy, other: Strategy) -> Strategy:
    """Nine in ten are good, so that the tenth stands alone and is met by its own check."""
    return st.integers(0, 9).flatmap(lambda n: other if n == 9 else good)


def maybe(strategy: Strategy) -> Strategy:
    return mostly(st.none(), strategy) | strategy


def wrapped(message: Callable[..., Any], items: Strategy, **sizes: int) -> Strategy:
    """`Indices`, `Names` and the like."""
    return st.lists(items, **sizes).map(lambda values: message(values=values))


indices = wrapped(pb.Indices, mostly(small, integers), max_size=3)


@st.composite
def odd_tensors(draw: st.DrawFn) -> pb.Tensor:
    """Any dtype and shape, with bytes that fit, or do not."""
    shape = draw(st.lists(st.sampled_from((0, 1, 2, 3, 16, 64, -1, 2**31, 2**62)), max_size=4) | st.just([1] * 70))
    fits = min(abs(int(np.prod([float(n) for n in shape]))), 4096) * 4
    data = draw(st.sampled_from((b"\0" * fits, b"\x7f" * fits, b"", b"\xff" * 7)))
    return pb.Tensor(dtype=draw(st.sampled_from(DTYPES)), shape=shape, data=data)


def tensor(*shape: int) -> Strategy:
    """float32 of this shape, now and then with a hostile number in it; or an odd one."""

    def of(values: tuple[float, float, int]) -> pb.Tensor:
        array = np.random.default_rng(values[2]).standard_normal(shape).astype(np.float32) * np.float32(values[1])
        array.reshape(-1)[:1] = values[0]
        return pb.Tensor(dtype="float32", shape=shape, data=array.tobytes())

    good = st.tuples(st.sampled_from(FINITE), st.sampled_from((0.0, 1.0, 1e20)), st.integers(0, 3)).map(of)
    bad = st.tuples(st.sampled_from(FLOATS), st.just(1.0), st.just(0)).map(of)
    return mostly(good, bad | odd_tensors())


def vectors(widths: tuple[int, ...]) -> Strategy:
    return mostly(tensor(widths[-1]) | tensor(*widths), tensor(63) | tensor(2, widths[-1]))


def matrices(widths: tuple[int, ...]) -> Strategy:
    return tensor(2, widths[-1]) | tensor(1, widths[-1]) | vectors(widths)


def part(widths: tuple[int, ...]) -> dict[str, Strategy]:
    return {"units": mostly(st.none(), indices), "heads": mostly(st.none(), indices)}


def sources(widths: tuple[int, ...]) -> Strategy:
    rows = tensor(4, *widths) | tensor(1, *widths) | tensor(0, widths[-1]) | tensor(4, 4, 4)
    from_input = st.builds(pb.FromInput, input=st.sampled_from(("a", "b", "", "c")), positions=maybe(indices))
    return st.one_of(
        st.just(pb.Source(zeros=pb.Zeros())),
        vectors(widths).map(lambda t: pb.Source(constant=pb.Constant(value=t))),
        rows.map(lambda t: pb.Source(inline=pb.Inline(value=t))),
        st.sampled_from(("", "cap-x", "../../etc/passwd", "\0")).map(lambda i: pb.Source(stored=pb.Stored(capture_id=i))),
        from_input.map(lambda f: pb.Source(from_input=f)),
        st.just(pb.Source()),
    )


def edits(widths: tuple[int, ...]) -> Strategy:
    some, flat = part(widths), int(np.prod(widths))
    low_rank = {"a": tensor(64, 2) | tensor(96, 2), "b": tensor(2, flat) | tensor(1, flat), "alpha": maybe(floats)}
    clamp = {"directions": maybe(matrices(widths)), "min": maybe(floats), "max": maybe(floats)}
    kinds: dict[str, Strategy] = {
        "add": st.builds(pb.Add, vector=vectors(widths), alpha=maybe(floats), norm_match=st.booleans(), **some),
        "scale": st.builds(pb.Scale, factor=maybe(floats), **some),
        "replace": st.builds(pb.Replace, source=sources(widths), **some),
        "project_out": st.builds(pb.ProjectOut, directions=matrices(widths), **some),
        "clamp": st.builds(pb.Clamp, **clamp, **some),
        "noise": st.builds(pb.Noise, std=maybe(floats), seed=mostly(small, integers), **some),
        "low_rank": st.builds(pb.LowRank, **low_rank),
    }
    return st.one_of(*(kind.map(lambda e, name=name: pb.Edit(**{name: e})) for name, kind in kinds.items()))


def captures(widths: tuple[int, ...]) -> Strategy:
    kinds: dict[str, Strategy] = {
        "last": st.just(pb.Last()),
        "mean": st.just(pb.Mean()),
        "norm": st.just(pb.Norm()),
        "top_k": st.builds(pb.TopK, k=mostly(st.sampled_from((1, 5, widths[-1])), integers)),
        "project": st.builds(pb.Project, directions=matrices(widths)),
        "gather": st.builds(pb.Gather, ids=indices),
        "next_logprob": st.just(pb.NextLogprob()),
    }
    reduction = st.one_of(*(kind.map(lambda r, n=name: pb.Reduction(**{n: r})) for name, kind in kinds.items()))
    return st.builds(
        pb.Capture,
        before=st.booleans(),
        dtype=maybe(st.sampled_from(DTYPES)),
        reduce=maybe(reduction | st.just(pb.Reduction())),
        store=st.integers(0, 9).map(lambda n: n == 9),
    )


@st.composite
def sites(draw: st.DrawFn) -> tuple[str, tuple[int, ...]]:
    """A site's name and its widths."""
    kind = draw(st.integers(0, 9))
    if kind == 9:
        path = draw(st.sampled_from(sorted(MODULES)))
        return f"module:{path}:{draw(st.sampled_from(('input', 'output')))}", (MODULES[path],)
    if kind == 8:
        return draw(st.sampled_from(("embed", "final_norm", "logits", "", "embed.1", "\0", "é" * 600, "blocks.1.hook_v"))), (64,)
    name = draw(st.sampled_from(sorted(WIDTHS)))
    layer = draw(mostly(st.sampled_from(LAYERS[:4]), st.sampled_from(LAYERS))) if name in LAYER_SITES else ""
    return name + layer, WIDTHS[name]


@st.composite
def conditions(draw: st.DrawFn, own: tuple[str, tuple[int, ...]]) -> pb.Condition:
    name, widths = draw(st.just(("", own[1])) | sites())
    by_unit = draw(st.booleans())
    return pb.Condition(
        threshold=draw(mostly(floats, st.none())),
        site=name,
        op=draw(mostly(st.none(), st.sampled_from(("lt", "le", "ge", "eq")))),
        unit=draw(mostly(small, integers)) if by_unit else None,
        head=draw(maybe(mostly(small, integers))) if len(widths) == 1 else draw(mostly(small, integers)),
        direction=None if by_unit else draw(vectors(widths[-1:])),
        latch=draw(mostly(st.none(), st.sampled_from(("last", "mean", "first")))),
    )


spans = wrapped(pb.Spans, st.builds(pb.Span, start=mostly(small, integers), stop=maybe(integers)), max_size=2)


@st.composite
def hooks(draw: st.DrawFn) -> pb.Hook:
    """Site, edit, capture and condition about the same width, most of the time."""
    name, widths = own = draw(sites())
    where = pb.Where(
        positions=draw(mostly(st.none(), indices)),
        spans=draw(mostly(st.none(), spans)),
        phase=draw(mostly(st.none(), st.sampled_from(("prompt", "generated", "never")))),
        token_ids=draw(mostly(st.none(), indices)),
        when=draw(mostly(st.none(), conditions(own)) | maybe(conditions(own))),
    )
    return pb.Hook(
        site=name,
        edit=draw(maybe(edits(widths))),
        capture=draw(maybe(captures(widths))),
        where=draw(st.none() | st.just(where)),
        inputs=draw(mostly(st.none(), wrapped(pb.Names, st.sampled_from(("a", "b", "c")), max_size=2))),
        id=draw(mostly(st.none(), st.sampled_from(("", "x", "x" * 600)))),
    )


plans: Strategy = st.lists(hooks(), min_size=1, max_size=3).map(lambda found: pb.Plan(hooks=found))

texts = st.sampled_from(("Hi a", "b", "\0", "日本", "x" * 40))
one_input = st.builds(
    pb.Input,
    text=texts,
    token_ids=mostly(st.none(), indices),
    prompt_length=mostly(st.none(), mostly(small, integers)),
)


def _named(found: list[pb.Input]) -> list[pb.Input]:
    for name, item in zip("ab", found, strict=False):
        item.name = name
    return found


inputs = st.lists(one_input, min_size=1, max_size=2).map(_named)
sampling = st.builds(
    pb.Sampling,
    max_new_tokens=mostly(st.sampled_from((1, 2, 3)), integers),
    temperature=mostly(st.none(), floats),
    top_p=mostly(st.none(), floats),
    top_k=mostly(st.just(0), integers),
    seed=mostly(st.just(1), integers),
    logprobs=mostly(st.none(), integers),
    stop=mostly(st.just(()), st.lists(st.text(max_size=3), max_size=2)),
    ignore_eos=st.booleans(),
)
run_requests: Strategy = st.builds(pb.RunRequest, model=st.just("torch"), inputs=inputs, plan=plans)
generate_requests: Strategy = st.builds(
    pb.GenerateRequest, model=st.just("torch"), inputs=inputs, plan=plans, sampling=sampling
)
