"""Short ways to write hooks give the hooks that the long way gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.clients import (
    Add,
    Capture,
    Condition,
    Constant,
    FromInput,
    Hook,
    Inline,
    InvalidArgument,
    Mean,
    ProjectOut,
    Replace,
    Span,
    Stored,
    Tensor,
    TopK,
    Where,
    Zeros,
    ablate,
    capture,
    edit_latents,
    hook,
    patch,
    reconstruct,
    steer,
)
from probewire.clients.requests.hooks import to_plan

V = Tensor.of([1.0, 2.0])


def bad(value: Any) -> Any:
    """A value of the wrong type, on purpose."""
    return value


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (steer("resid_post.3", [1.0, 2.0], 4), Hook("resid_post.3", Add(V, 4.0))),
        (
            steer("resid_post.*", np.array([1, 2], np.float32), alpha=2, norm_match=True, phase="generated", id="up"),
            Hook("resid_post.*", Add(V, 2.0, True), where=Where(phase="generated"), id="up"),
        ),
        (steer("z.1", [1.0, 2.0], heads=[0]), Hook("z.1", Add(V, heads=(0,)))),
        (ablate("mlp_act.0", units=[3, 5]), Hook("mlp_act.0", Replace(Zeros(), units=(3, 5)))),
        (ablate("mlp_out.0", mean=[1.0, 2.0]), Hook("mlp_out.0", Replace(Constant(V)))),
        (ablate("resid_mid.0", directions=[[1.0, 2.0]]), Hook("resid_mid.0", ProjectOut(Tensor.of([[1.0, 2.0]])))),
        (
            patch("resid_pre.2", from_input="clean", positions=[3, -1], source_positions=[2, -1], inputs="corrupt"),
            Hook(
                "resid_pre.2",
                Replace(FromInput("clean", (2, -1))),
                where=Where(positions=(3, -1)),
                inputs=("corrupt",),
            ),
        ),
        (
            patch("embed", value=[[1.0, 2.0]], positions=0),
            Hook("embed", Replace(Inline(Tensor.of([[1.0, 2.0]]))), where=Where((0,))),
        ),
        (
            patch("embed", stored="cap-1", spans=[(0, 4)]),
            Hook("embed", Replace(Stored("cap-1")), where=Where(spans=(Span(0, 4),))),
        ),
        (capture("logits", reduce="mean", inputs=["a"]), Hook("logits", capture=Capture(reduce=Mean()), inputs=("a",))),
        (
            capture("q.0", reduce=TopK(3), dtype="float16", before=True),
            Hook("q.0", capture=Capture(True, "float16", TopK(3))),
        ),
        (
            capture("q.0", store=True, token_ids=[7]),
            Hook("q.0", capture=Capture(store=True), where=Where(token_ids=(7,))),
        ),
        (
            hook("mlp_act.1", Replace(Zeros()), when={"threshold": 1, "unit": 3}),
            Hook("mlp_act.1", Replace(Zeros()), where=Where(when=Condition(1.0, unit=3))),
        ),
    ],
)
def test_short_and_long(short: Hook, long: Hook) -> None:
    assert short == long


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patch("embed"), "exactly one of from_input, value and stored, got none"),
        (lambda: patch("embed", value=[[1.0]], stored="x"), "got .'value', 'stored'."),
        (lambda: patch("embed", stored="x", source_positions=1), "give from_input with them"),
        (lambda: ablate("embed", mean=[1.0], directions=[[1.0]]), "mean or directions, not both"),
        (
            lambda: capture("embed", reduce=bad("max")),
            "reduce 'max'; allowed: last, mean, norm, next_logprob, or a value",
        ),
        (lambda: steer("resid_pos.1", [1.0]), "unknown site 'resid_pos.1'"),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        call()


def test_a_plan_has_hooks_first_and_then_captures() -> None:
    edit = steer("embed", [1.0, 2.0])
    assert to_plan(edit, ["embed", capture("logits")]).hooks == (edit, capture("embed"), capture("logits"))
    assert to_plan((), "blocks.3.hook_resid_post").hooks == (capture("resid_post.3"),)


def test_hooks_as_dicts_may_hold_arrays_and_tuples() -> None:
    data = {"site": "embed", "edit": {"add": {"vector": np.array([1, 2], np.float32)}}, "where": {"positions": (0, -1)}}
    assert to_plan(data).hooks == (Hook("embed", Add(V), where=Where((0, -1))),)
    with pytest.raises(InvalidArgument, match=r"unknown fields \['sites'\]"):
        to_plan({"sites": "embed"})


def test_what_is_no_hook_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"got str; to capture a site write capture=\['embed'\]"):
        to_plan(bad("embed"))
    with pytest.raises(InvalidArgument, match="got int"):
        to_plan((), [bad(3)])


MISSPELT: dict[str, Any] = {
    "steer": lambda: steer("embed", [1.0], alpa=3.0),  # pyright: ignore[reportCallIssue]
    "ablate": lambda: ablate("embed", position=[0]),  # pyright: ignore[reportCallIssue]
    "patch": lambda: patch("embed", from_input="a", fase="prompt"),  # pyright: ignore[reportCallIssue]
    "capture": lambda: capture("embed", latent="mine"),  # pyright: ignore[reportCallIssue]
    "edit_latents": lambda: edit_latents("embed", "mine", {1: 2.0}, position=[-1]),  # pyright: ignore[reportCallIssue]
    "reconstruct": lambda: reconstruct("embed", "mine", span=[(0, 1)]),  # pyright: ignore[reportCallIssue]
    "hook": lambda: hook("embed", None, Capture(), ids="x"),  # pyright: ignore[reportCallIssue]
}


@pytest.mark.parametrize("name", MISSPELT)
def test_an_option_that_there_is_not_is_never_passed_over(name: str) -> None:
    with pytest.raises(
        InvalidArgument, match=r"unknown options \['\w+'\] of a hook at embed; allowed .*positions, spans"
    ):
        MISSPELT[name]()
