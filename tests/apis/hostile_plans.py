"""Requests that are well formed as protobuf and often nonsense as plans: most are right but for one thing, so that it
is met by its own check, and many get as far as a forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st

from probewire.protos import probewire_pb2 as pb
from probewire.protos.sites import GLOBAL_SITES, HEAD_SITES, LAYER_SITES
from probewire.protos.tensors import numpy_dtype

__all__ = ["INTEGERS", "Dice", "dice", "generate_request", "plan", "run_request"]

T = TypeVar("T")
Widths = tuple[int, ...]

WIDTHS: dict[str, Widths] = {
    **{name: (64,) for name in (*LAYER_SITES, *GLOBAL_SITES) if name not in ("router_logits", "expert_weights")},
    **dict.fromkeys(("q", "z"), (4, 16)),
    **dict.fromkeys(("k", "v"), (2, 16)),
    **dict.fromkeys(("attn_scores", "attn_probs"), (4, 8)),
    **dict.fromkeys(("mlp_gate", "mlp_up", "mlp_act"), (96,)),
    "logits": (261,),
}
"""Of the tiny llama, which has no experts."""
MODULES: dict[str, Widths] = {
    "module:model.layers.0:output": (64,),
    "module:model.layers.1.mlp:input": (64,),
    "module:model.layers.1.self_attn.q_proj:output": (64,),
    "module:model.layers.1.self_attn:output": (64,),
    "module:model.layers.2.mlp.gate_proj:output": (96,),
    "module:model.embed_tokens:output": (64,),
    "module:model.embed_tokens:input": (1,),
    "module:lm_head:output": (261,),
    "module:model.rotary_emb:output": (16,),
    "module:model.layers:output": (64,),
    "module:model:output": (64,),
    "module:nothing.here:output": (64,),
}
ODD_SITES = (
    "",
    "\0",
    "resid_post",
    "embed.1",
    "blocks.1.attn.hook_q",
    "resid_post.\u0663",
    "q." + "9" * 5000,
    "é" * 600,
)
LAYERS = (".1", ".0", ".2", ".*", ".0:2")
ODD_LAYERS = ("", ".3", ".-1", ".2:1", ".:", ".9999999999999999999999")
INTEGERS = (0, 1, 2, 3, 4, 15, 16, 63, 64, 96, 261, -1, -4, -5, 2**31, 2**62, 2**63 - 1, -(2**63))
FLOATS = (1.0, 0.0, -1.0, 0.25, 7.0)
ODD_FLOATS = (1e-40, 1e30, -3e38, math.nan, math.inf, -math.inf, 1e300, -1e-300)
DTYPES = ("float32", "float32", "float64", "bfloat16", "float16")
ODD_DTYPES = ("int64", "int32", "uint8", "bool", "complex64", "")
SHAPES = ((), (0,), (64, 0), (0, 2**62), (-1,), (2**31, 2**31), (1,) * 70, (3, 3, 3, 3), (63,), (2**63 - 1,))


@dataclass(frozen=True, slots=True)
class Dice:
    """Draws that shrink to the first option. Integers alone are drawn, as strategies made on the way are slow."""

    below: Callable[[int], int]

    def of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def odd(self, good: Sequence[T], odd: Sequence[T]) -> T:
        """One time in twelve an odd one."""
        return self.of(odd) if self.below(12) == 11 else self.of(good)

    def maybe(self, draw: Callable[[], T], chance: int = 3) -> T | None:
        """One time in `chance`."""
        return draw() if self.below(chance) == chance - 1 else None

    def integer(self) -> int:
        return self.odd((0, 1, 2, 3), INTEGERS)

    def number(self) -> float:
        return self.odd(FLOATS, ODD_FLOATS)

    def integers(self) -> pb.Indices:
        usual = ([0], [1], [2, 0], [0, 1, 3])
        return pb.Indices(values=self.odd(usual, ([], [0, 0], [self.integer(), self.integer()])))


@st.composite
def dice(draw: st.DrawFn) -> Dice:
    return Dice(lambda n: draw(_BELOW[n]))


_BELOW = [st.integers(0, max(0, n - 1)) for n in range(64)]


def tensor(d: Dice, *shapes: Widths) -> pb.Tensor:
    """Numbers of one of these shapes; now and then another shape, other bytes, or a number that is none."""
    shape, dtype = d.odd(shapes, SHAPES), d.odd(DTYPES, ODD_DTYPES)
    if shape in shapes and dtype in DTYPES:
        array = np.random.default_rng(d.below(4)).standard_normal(shape) * d.odd((1.0,), (0.0, 1e20))
        array.reshape(-1)[:1] = d.number()
        with np.errstate(over="ignore"):
            array = array.astype(numpy_dtype(dtype))
        return pb.Tensor(dtype=dtype, shape=shape, data=array.tobytes())
    n_bytes = math.prod(shape) * {"float64": 8, "int64": 8, "float16": 2, "bfloat16": 2}.get(dtype, 4)
    data = d.of((b"\0", b"\x7f", b"\xff")) * n_bytes if 0 <= n_bytes < 1 << 16 else b""
    return pb.Tensor(dtype=dtype, shape=shape, data=d.odd((data,), (b"", b"1234567")))


def vector(d: Dice, widths: Widths) -> pb.Tensor:
    return tensor(d, widths[-1:], widths)


def matrix(d: Dice, widths: Widths) -> pb.Tensor:
    return tensor(d, (2, widths[-1]), (1, widths[-1]), widths[-1:])


def source(d: Dice, widths: Widths) -> pb.Source:
    kind = d.odd(("zeros", "constant", "inline", "stored", "from_input"), ("",))
    if kind == "constant":
        return pb.Source(constant=pb.Constant(value=vector(d, widths)))
    if kind == "inline":
        return pb.Source(inline=pb.Inline(value=tensor(d, (4, *widths), (1, *widths), (0, *widths), (4, 4, 4))))
    if kind == "stored":
        return pb.Source(stored=pb.Stored(capture_id=d.of(("", "cap-x", "../../etc/passwd", "\0"))))
    if kind == "from_input":
        return pb.Source(from_input=pb.FromInput(input=d.of(("b", "a", "", "c")), positions=d.maybe(d.integers)))
    return pb.Source(zeros=pb.Zeros()) if kind else pb.Source()


SAES = ("sae", "sae", "sae", "none", "")
"""One of them is loaded, onto resid_post.1."""


def change(d: Dice) -> pb.LatentChange:
    low, high = sorted((d.number(), d.number()))
    what = d.odd(
        ({"set": low}, {"add": low}, {"scale": high}, {"min": low, "max": high}), ({}, {"set": low, "add": high})
    )
    return pb.LatentChange(id=d.odd((0, 3, 95), (96, d.integer())), active=bool(d.below(2)), **what)


def edit(d: Dice, widths: Widths) -> pb.Edit:
    part: dict[str, Any] = {"units": d.maybe(d.integers, 6), "heads": d.maybe(d.integers, 2 * 6 // len(widths))}
    flat = math.prod(widths)
    kind = d.of(("add", "scale", "replace", "project_out", "clamp", "noise", "low_rank", "latents", "affine"))
    if kind == "add":
        width = (len(part["units"].values),) if part["units"] else widths
        made: Any = pb.Add(vector=vector(d, width), alpha=d.maybe(d.number), norm_match=not d.below(3), **part)
    elif kind == "scale":
        made = pb.Scale(factor=d.odd((d.number(),), (None,)), **part)
    elif kind == "replace":
        made = pb.Replace(source=source(d, widths), **part)
    elif kind == "project_out":
        made = pb.ProjectOut(directions=matrix(d, widths), **part)
    elif kind == "clamp":
        low, high = sorted((d.number(), d.number()))
        bounds = d.odd(({"min": low, "max": high}, {"min": low}, {"max": high}), ({}, {"min": high, "max": low}))
        made = pb.Clamp(directions=d.maybe(lambda: matrix(d, widths), 2), **bounds, **part)
    elif kind == "noise":
        made = pb.Noise(std=d.odd((0.1, 1.0), ODD_FLOATS), seed=d.integer(), **part)
    elif kind == "latents":
        made = pb.Latents(
            sae=d.of(SAES), changes=[change(d) for _ in range(d.below(4))], error=d.maybe(lambda: bool(d.below(2)))
        )
    elif kind == "affine":
        width = len(part["units"].values) if part["units"] else widths[-1]
        rank = d.odd((1, 3), (0, 513))
        made = pb.Affine(
            a=tensor(d, (width, rank)),
            b=tensor(d, (rank, width)),
            c=d.maybe(lambda: tensor(d, (rank,))),
            alpha=d.maybe(d.number),
            **part,
        )
    else:
        made = pb.LowRank(a=tensor(d, (64, 2), (96, 2)), b=tensor(d, (2, flat)), alpha=d.maybe(d.number))
    return pb.Edit(**{kind: made})


def capture(d: Dice, widths: Widths) -> pb.Capture:
    kinds: dict[str, Callable[[], Any]] = {
        "last": pb.Last,
        "mean": pb.Mean,
        "norm": pb.Norm,
        "top_k": lambda: pb.TopK(k=d.odd((1, 5, widths[-1]), INTEGERS)),
        "project": lambda: pb.Project(directions=matrix(d, widths)),
        "gather": lambda: pb.Gather(ids=d.integers()),
        "next_logprob": lambda: pb.NextLogprob(top=d.odd((0, 1, 5), INTEGERS)),
        "latents": lambda: pb.ReadLatents(
            sae=d.of(SAES), top_k=d.maybe(lambda: d.odd((1, 6, 96), INTEGERS)), ids=d.maybe(d.integers, 3)
        ),
    }
    kind = d.odd(tuple(kinds), ("",))
    reduction = pb.Reduction(**{kind: kinds[kind]()}) if kind else pb.Reduction()
    reduced = d.below(2)
    return pb.Capture(
        before=not d.below(4),
        dtype=d.maybe(lambda: d.odd(DTYPES, ODD_DTYPES), 4),
        reduce=reduction if reduced else None,
        store=not d.below(8) if not reduced else d.odd((False,), (True,)),
    )


def site(d: Dice) -> tuple[str, Widths]:
    """A name and its widths."""
    kind = d.below(12)
    if kind == 11:
        return d.odd(tuple(MODULES.items()), tuple((name, (64,)) for name in ODD_SITES))
    if kind == 10:
        return "resid_post.1", WIDTHS["resid_post"]  # where the SAE is
    name = d.of(tuple(WIDTHS))
    return name + (d.odd(LAYERS, ODD_LAYERS) if name in LAYER_SITES else ""), WIDTHS[name]


def condition(d: Dice, own: tuple[str, Widths]) -> pb.Condition:
    name, widths = ("", own[1]) if d.below(2) else site(d)
    has_heads = (name or own[0]).partition(".")[0] in HEAD_SITES
    by_unit = d.below(2)
    return pb.Condition(
        threshold=d.odd((d.number(),), (None,)),
        site=name,
        op=d.maybe(lambda: d.odd(("lt", "le", "ge", "gt"), ("eq", ""))),
        unit=d.integer() if by_unit else None,
        head=d.integer() if d.odd((has_heads,), (not has_heads,)) else None,
        direction=None if by_unit else vector(d, widths[-1:]),
        latch=d.maybe(lambda: d.odd(("last", "mean"), ("first", "")), 4),
        normalise=not d.below(3),
    )


def when(d: Dice, own: tuple[str, Widths]) -> dict[str, Any]:
    """One condition, or several; none now and then."""
    kind = d.of(("when", "when", "all_of", "any_of"))
    if kind == "when":
        return {"when": d.maybe(lambda: condition(d, own), 2)}
    listed = [condition(d, own) for _ in range(d.odd((1, 2, 8), (0, 9)))]
    return {kind: (pb.AllOf if kind == "all_of" else pb.AnyOf)(conditions=listed)}


def where(d: Dice, own: tuple[str, Widths]) -> pb.Where:
    span = d.maybe(lambda: pb.Span(start=d.integer(), stop=d.maybe(d.integer)), 5)
    return pb.Where(
        positions=d.maybe(d.integers, 5) if span is None else d.odd((None,), (pb.Indices(values=[0]),)),
        spans=pb.Spans(values=[span] * d.odd((1,), (0, 3))) if span else None,
        phase=d.maybe(lambda: d.odd(("prompt", "generated", "all"), ("never", ""))),
        token_ids=d.maybe(d.integers, 8),
        **when(d, own),
    )


def hook(d: Dice) -> pb.Hook:
    """Site, edit, capture and condition of the same width, most of the time."""
    own = site(d)
    what = d.odd(("edit", "capture", "both"), ("",))
    return pb.Hook(
        site=own[0],
        edit=edit(d, own[1]) if what in ("edit", "both") else None,
        capture=capture(d, own[1]) if what in ("capture", "both") else None,
        where=where(d, own) if d.below(2) else None,
        inputs=d.maybe(lambda: pb.Names(values=d.odd((["a"], ["a", "b"]), ([], ["c"]))), 6),
        id=d.maybe(lambda: d.odd(("", "x"), ("x" * 600,)), 12),
    )


def plan(d: Dice) -> pb.Plan:
    return pb.Plan(hooks=[hook(d) for _ in range(d.of((1, 2, 3)))])


def _inputs(d: Dice) -> list[pb.Input]:
    found: list[pb.Input] = []
    for name in d.odd(("a", "ab"), ("", "aa")):
        item = pb.Input(name=name, prompt_length=d.odd((None, 1), INTEGERS))
        if d.odd((True,), (False,)):
            item.text = d.of(("Hi a", "b", "\0", "日本", "x" * 40))
        else:
            item.token_ids.CopyFrom(d.integers())
        found.append(item)
    return found


def run_request(d: Dice) -> pb.RunRequest:
    return pb.RunRequest(model="torch", inputs=_inputs(d), plan=plan(d))


def generate_request(d: Dice) -> pb.GenerateRequest:
    sampling = pb.Sampling(
        max_new_tokens=d.odd((1, 2, 3), INTEGERS),
        temperature=d.maybe(lambda: d.odd((0.0, 1.0, 99.0), ODD_FLOATS)),
        top_p=d.maybe(lambda: d.odd((0.5, 1.0, 1e-30), ODD_FLOATS)),
        top_k=d.odd((0, 1, 5), INTEGERS),
        seed=d.maybe(d.integer),
        logprobs=d.maybe(d.integer),
        stop=d.odd(((), ("x",)), (("",), ("x" * 2000,))),
        ignore_eos=not d.below(2),
    )
    return pb.GenerateRequest(model="torch", inputs=_inputs(d), plan=plan(d), sampling=sampling)
