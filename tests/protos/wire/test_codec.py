"""Any plan survives the round trip through protobuf and JSON; strangers' fields and garbage are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from probewire.protos import probewire_pb2 as pb
from probewire.protos.edits import Add, Replace, Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.gradients import GradientsRequest
from probewire.protos.metrics import Logit, Measured, Target
from probewire.protos.model import ONLY_TEXT, GenerateRequest, Input, Message, RunRequest, Sampling
from probewire.protos.spec import AllOf, Capture, Condition, Hook, Plan, Where
from probewire.protos.sweeps import SweepRequest
from probewire.protos.tensors import DTYPES, Tensor
from probewire.protos.wire.codec import from_json, from_proto, to_json, to_proto
from probewire.protos.wire.parsing import parse
from tests.protos.plans import gradients_requests, measured, plans, sweep_requests, tensors


@settings(max_examples=150)
@given(plans)
def test_any_plan_survives_protobuf(plan: Plan) -> None:
    data = to_proto(plan).SerializeToString()
    assert from_proto(Plan, parse(pb.Plan, data)) == plan


@settings(max_examples=100)
@given(plans, st.sampled_from(["base64", "list"]))
def test_any_plan_survives_json(plan: Plan, style: Any) -> None:
    data = json.loads(json.dumps(to_json(plan, tensors=style), allow_nan=False))
    assert from_json(Plan, data) == plan


@settings(max_examples=100)
@given(gradients_requests | sweep_requests | measured, st.sampled_from(["base64", "list"]))
def test_what_is_measured_survives(value: GradientsRequest | SweepRequest | Measured, style: Any) -> None:
    kind = type(value)
    message = getattr(pb, kind.__name__)
    assert from_proto(kind, parse(message, to_proto(value).SerializeToString())) == value
    found = from_json(kind, json.loads(json.dumps(to_json(value, tensors=style), allow_nan=False)))
    assert found == value
    if isinstance(found, Measured):
        assert found.values.dtype == "float64"


@settings(max_examples=60)
@given(tensors(1, 2, 3, dtypes=tuple(DTYPES)), st.sampled_from(["base64", "list"]))
def test_any_tensor_survives(tensor: Tensor, style: Any) -> None:
    assert from_proto(Tensor, parse(pb.Tensor, to_proto(tensor).SerializeToString())) == tensor
    assert from_json(Tensor, json.loads(json.dumps(to_json(tensor, tensors=style)))) == tensor


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_plan_or_refused(data: bytes) -> None:
    assert _outcome(lambda: from_proto(Plan, parse(pb.Plan, data)))


json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["hooks", "site", "edit", "add", "where", "capture", "vector", "x"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200)
@given(json_data)
def test_any_json_is_a_plan_or_refused(data: Any) -> None:
    assert _outcome(lambda: from_json(Plan, data))


def _outcome(decode: Callable[[], Plan]) -> str:
    """A refusal's message, or "taken"."""
    try:
        decode()
    except InvalidArgument as error:
        return error.message
    return "taken"


def test_bfloat16_keeps_its_bits() -> None:
    values = np.array([1.0, -2.5, 3.389e38], dtype=DTYPES["bfloat16"])
    tensor = Tensor.of(values)
    back = from_proto(Tensor, to_proto(tensor)).numpy()
    assert back.dtype == values.dtype
    assert np.array_equal(back.view(np.uint16), values.view(np.uint16))


def test_requests_survive() -> None:
    request = GenerateRequest(
        (
            Input(messages=(Message("user", "hi"),), name="a"),
            Input(token_ids=(1, 2), name="b", source_only=True),
            Input("x", name="c"),
        ),
        model="m",
        plan=Plan((Hook("resid_post.*", capture=Capture()),)),
        sampling=Sampling(max_new_tokens=3, temperature=0.5, seed=7, stop=("\n",), logprobs=2),
    )
    assert from_proto(GenerateRequest, to_proto(request)) == request
    assert from_json(GenerateRequest, json.loads(json.dumps(to_json(request)))) == request
    run = RunRequest((Input("x", prompt_length=1),))
    assert from_proto(RunRequest, to_proto(run)) == run


def test_absent_fields_take_their_defaults() -> None:
    hook = from_proto(Hook, pb.Hook(site="resid_post.1", edit=pb.Edit(scale=pb.Scale(factor=2))))
    assert hook == Hook("resid_post.1", edit=Scale(2.0))
    assert from_proto(Sampling, pb.Sampling()) == Sampling()
    assert from_proto(Add, pb.Add(vector=to_proto(Tensor.of([1.0])))).alpha == 1.0


def test_absent_fields_of_what_is_measured_take_their_defaults() -> None:
    target = pb.Target(metric=pb.Metric(logit=pb.Logit(token=5)))
    inputs = [pb.Input(name="a", text="x")]
    asked = from_proto(GradientsRequest, pb.GradientsRequest(inputs=inputs, targets=[target]))
    assert asked == GradientsRequest((Input("x", name="a"),), (Target(Logit(5)),))
    assert (asked.targets[0].metric, asked.targets[0].inputs, asked.path) == (Logit(5, -1), None, None)
    swept = from_proto(SweepRequest, pb.SweepRequest(inputs=inputs, targets=[target], plans=[pb.Plan()]))
    assert (swept.share, swept.plans, swept.base) == (True, (Plan(),), Plan())
    body = {"inputs": [{"text": "x"}], "targets": [{"metric": {"logit": {"token": 5}}}], "plans": [{}]}
    assert from_json(SweepRequest, body).share is True
    assert from_json(SweepRequest, {**body, "share": False}).share is False


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"hooks": [{"site": "resid_post.1", "edit": {"scale": {"factor": 2}}, "wher": {}}]},
            r"hooks\[0\].*wher.*allowed",
        ),
        ({"hooks": [{"site": "resid_post.1", "edit": {"scale": {}}}]}, "scale.factor is missing"),
        ({"hooks": [{"site": "resid_post.1", "edit": {"scaled": {}}}]}, "one key of add, scale"),
        ({"hooks": [{"site": "resid_post.1", "edit": {"add": {"vector": [[1], [2, 3]]}}}]}, "rectangular"),
        ({"hooks": [{"site": "resid_pst.1", "capture": {}}]}, "unknown site 'resid_pst.1'"),
        ({"hooks": [{"site": "resid_post", "capture": {}}]}, "needs a layer"),
        ({"hooks": [{"site": "logits.3", "capture": {}}]}, "without a layer"),
        ({"hooks": [{"site": "blocks.1.attn.hook_q", "capture": {}}]}, "before the rotary"),
        ({"hooks": [{"site": "resid_post.1", "capture": {}, "where": {"positions": []}}]}, "positions is empty"),
        ({"hooks": [{"site": "resid_post.1"}]}, "neither an edit nor a capture"),
        ({"hooks": {}}, "must be a list"),
        ([], "must be an object"),
    ],
)
def test_json_errors_name_the_place(data: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        from_json(Plan, data)


def test_images_are_refused_in_words() -> None:
    parts: Any = [{"type": "image", "url": "https://x/y.png"}, {"type": "text", "text": "What is this?"}]
    with pytest.raises(InvalidArgument) as told:
        from_json(RunRequest, {"inputs": [{"messages": [{"role": "user", "content": parts}]}]})
    assert str(told.value).startswith("inputs[0].messages[0].content must be a str, got [{'type': 'image'")
    assert str(told.value).endswith(ONLY_TEXT)
    with pytest.raises(InvalidArgument, match="text tower only"):
        Message("user", parts)


def test_numbers_that_a_dtype_does_not_hold_are_refused() -> None:
    """They would become infinite, and −infinity means something."""
    for dtype, number in (("float16", -7e4), ("float32", 1e39), ("bfloat16", -1e39)):
        with pytest.raises(InvalidArgument, match=f"is beyond {dtype}: send value.data in another dtype"):
            from_json(Tensor, {"dtype": dtype, "shape": [2], "data": [1.0, number]}, "value")
    with pytest.raises(InvalidArgument, match=r"1e\+39 is beyond float32"):
        from_json(Tensor, [1.0, 1e39], "value")


def test_a_key_is_taken_out_in_json() -> None:
    edit = {"replace": {"source": {"constant": {"value": "-Infinity"}}, "units": [2]}}
    plan = from_json(Plan, {"hooks": [{"site": "attn_scores.1", "edit": edit}]})
    [hook] = plan.hooks
    assert isinstance(hook.edit, Replace)
    assert hook.edit.takes_out
    for style in ("list", "base64"):
        data = json.loads(json.dumps(to_json(plan, tensors=style), allow_nan=False))
        assert from_json(Plan, data) == plan
    with pytest.raises(InvalidArgument, match="replaces by −infinity"):
        from_json(Plan, {"hooks": [{"site": "resid_post.1", "edit": edit}]})


def test_unknown_protobuf_fields_are_refused_at_any_depth() -> None:
    hook = pb.Hook(site="resid_post.1", capture=pb.Capture())
    inner = hook.capture.SerializeToString() + b"\x98\x06\x01"  # field 99
    data = (
        b"\x0a"
        + bytes([len(b"\x0a\x0cresid_post.1") + 2 + len(inner)])
        + b"\x0a\x0cresid_post.1\x1a"
        + bytes([len(inner)])
        + inner
    )
    with pytest.raises(InvalidArgument, match=r"unknown field numbers \[99\]"):
        parse(pb.Plan, data)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_must_be_finite(bad: float) -> None:
    with pytest.raises(InvalidArgument, match="NaN or infinite"):
        Add(Tensor.of(np.array([1.0, bad], dtype=np.float32)))
    with pytest.raises(InvalidArgument, match="finite number"):
        Scale(bad)


def test_where_wants_positions_or_spans() -> None:
    from probewire.protos.spec import Span

    with pytest.raises(InvalidArgument, match="not both"):
        Where(positions=(1,), spans=(Span(0, 2),))


def test_conditions_are_written_as_before_and_in_company_by_name() -> None:
    one, two = {"threshold": 1.0, "unit": 2}, {"threshold": 0, "unit": 3, "normalise": True, "latch": "last"}
    found = from_json(Where, {"when": one})
    assert found == Where(when=Condition(1.0, unit=2))
    found = from_json(Where, {"when": {"all_of": {"conditions": [one, two]}}})
    assert found.when == AllOf((Condition(1.0, unit=2), Condition(0.0, unit=3, normalise=True, latch="last")))
    assert to_proto(found).WhichOneof("condition") == "all_of"
    assert to_proto(Where(when=Condition(1.0, unit=2))).WhichOneof("condition") == "when"
    with pytest.raises(InvalidArgument, match=r"when.any_of.conditions\[0\] has unknown fields \['any_of'\]"):
        from_json(Where, {"when": {"any_of": {"conditions": [{"any_of": {"conditions": [one]}}]}}})
    with pytest.raises(InvalidArgument, match="one key of all_of, any_of"):
        from_json(Where, {"when": {"any_of": {"conditions": [one]}, "unit": 3}})
