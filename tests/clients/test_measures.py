"""Gradients and sweeps: the same over every transport, joined by input, saved and loaded."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_server import wait_for
from fake_service import FakeService, expected

from probewire import clients
from probewire.clients import (
    Client,
    Gradients,
    Input,
    IntegratedPath,
    Internal,
    InvalidArgument,
    Logit,
    LogProb,
    NotFound,
    Run,
    Scale,
    Sweep,
    Target,
    TopK,
    capture,
    hook,
    load,
    steer,
)
from probewire.clients.requests.asked import Asked
from probewire.clients.results.collecting import Collector, SweepCollector
from probewire.protos.gradients import GradientsRequest
from probewire.protos.metrics import Measured
from probewire.protos.model import Event, Finished, Tokenized, TokenizeRequest
from probewire.protos.sweeps import SweepRequest

FIVE = Logit(5)
HALVE = hook("resid_post.1", Scale(0.5))


@pytest.fixture
def fake() -> Client:
    return Client(service=FakeService())


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_gradients_and_values_are_told_apart(client: Client) -> None:
    found = client.gradients("abc", Logit(5), at=["resid_post.*", "embed"], capture=["resid_post.1", "logits"])
    assert isinstance(found, Gradients)
    assert found.metric == 97 + 98 + 99
    values = expected("resid_post.1", [97, 98, 99])
    np.testing.assert_array_equal(found["resid_post.1"], values)
    np.testing.assert_array_equal(found.gradients["resid_post.1"], -values)
    assert found.gradients.stack("resid_post").shape == (3, 3, 4)
    assert found.sites == ("resid_post.1", "logits")
    assert found.gradients.sites == ("embed", "resid_post.0", "resid_post.1", "resid_post.2")
    assert found.tokens == ("a", "b", "c")
    with pytest.raises(NotFound, match="'embed' was not captured"):
        found["embed"]
    with pytest.raises(ValueError, match="read-only"):
        found.gradients["embed"][0] = 0


def test_what_reaches_the_server(client: Client, service: FakeService) -> None:
    inputs = {"own": "ab", "other": Input(text="cd", source_only=True)}
    path = IntegratedPath("other", 3, "resid_post.0")
    client.gradients(inputs, LogProb(7, -2), at="z.1", capture="embed", hooks=steer("embed", np.ones(4)), rules="ln")
    client.gradients(
        inputs, {"own": Logit(7)}, at=capture("z.*", reduce=TopK(2)), rules=("ah",), direct=True, path=path
    )
    first, second = service.requests
    assert isinstance(first, GradientsRequest)
    assert isinstance(second, GradientsRequest)
    sites = [(h.site, h.edit is not None, h.capture and h.capture.gradient) for h in first.plan.hooks]
    assert sites == [("embed", True, None), ("embed", False, False), ("z.1", False, True)]
    assert (first.targets, first.rules, first.direct, first.path) == ((Target(LogProb(7, -2)),), ("ln",), False, None)
    assert second.targets == (Target(Logit(7), ("own",)),)
    assert (second.rules, second.direct, second.path) == (("ah",), True, path)
    assert second.plan.hooks[0].capture == clients.Capture(reduce=TopK(2), gradient=True)


def test_several_inputs_and_a_path(client: Client) -> None:
    inputs = {"a": "ab", "b": [99, 100, 101], "s": Input(text="xy", source_only=True)}
    found = client.gradients(inputs, Logit(5), at="embed")
    assert {name: item.measured for name, item in found.inputs.items()} == {"a": (195,), "b": (300,), "s": ()}
    assert found.inputs["b"].gradients["embed"].shape == (3, 4)
    assert len(found.inputs["s"].gradients) == 0
    with pytest.raises(InvalidArgument, match=r"name one: result\.inputs"):
        _ = found.metric
    walked = client.gradients({"a": "ab", "s": inputs["s"]}, Logit(5), at="embed", path=IntegratedPath("s", 4))
    assert walked.inputs["a"].measured == (195, 196, 197, 198)
    with pytest.raises(InvalidArgument, match="input 'a' was measured 4 times; read `measured`"):
        _ = walked.inputs["a"].metric


def test_reductions_of_gradients_have_parts_of_their_own(client: Client) -> None:
    top = capture("mlp_act.0", reduce=TopK(2), id="t")
    found = client.gradients("ab", Logit(5), at=[top], capture=[capture("mlp_act.0", reduce=TopK(3))])
    values, indices = found.gradients.top_k("mlp_act.0")
    assert values.shape == indices.shape == (2, 2)
    assert (values < 0).all()
    assert found.captures.top_k("mlp_act.0")[0].shape == (2, 3)
    np.testing.assert_array_equal(found.gradients.array("t", "value"), values)


def test_what_cannot_be_asked(client: Client, service: FakeService) -> None:
    for call, why in (
        (lambda: client.gradients("a", Logit(5), at=HALVE), "edits such as that of resid_post.1 go in hooks"),
        (lambda: client.gradients("a", Logit(5), at=[steer("embed", np.ones(4))]), "`at` takes sites"),
        (lambda: client.gradients("a", Logit(5), at="embed", rules="relp"), "unknown rules.*allowed: ln, identity"),
        (lambda: client.gradients("a", [Logit(5), Logit(6)], at="embed"), "input 'input' has 2 targets"),
        (lambda: client.gradients({"a": "a", "b": "b"}, {"a": Logit(5)}, at="embed"), "input 'b' has 0 targets"),
        (lambda: client.gradients("a", {"b": Logit(5)}, at="embed"), r"no inputs \['b'\]"),
        (lambda: client.gradients("a", 5, at="embed"), "a target is a metric such as Logit"),
        (lambda: client.gradients("a", Logit(5), at="resid_post"), "needs a layer"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            call()
    assert service.requests == [], "refused before anything is sent"


def test_gradients_saved_and_loaded(fake: Client, tmp_path: Path) -> None:
    inputs = {"a": "ab", "b": "xyz", "s": Input(text="pqr", source_only=True)}
    found = fake.gradients(
        inputs,
        {"a": Logit(5), "b": LogProb(6)},
        at=["resid_post.*", capture("mlp_act.0", reduce=TopK(2)), capture("z.1", id="mine", positions=0)],
        capture=["resid_post.1", capture("mlp_act.0", reduce=TopK(3))],
    )
    again = load(found.save(tmp_path / "gradients.safetensors"))
    assert isinstance(again, Gradients)
    assert repr(again) == repr(found)
    assert again.started == found.started
    for name, item in found.inputs.items():
        other = again.inputs[name]
        assert other.measured == item.measured
        for ours, theirs in ((item.captures, other.captures), (item.gradients, other.gradients)):
            assert [(e.key, e.id, e.positions) for e in theirs.entries] == [
                (e.key, e.id, e.positions) for e in ours.entries
            ]
            for before, after in zip(ours.entries, theirs.entries, strict=True):
                assert after.array.dtype == before.array.dtype
                np.testing.assert_array_equal(after.array, before.array)
    assert again.inputs["a"].metric == 195
    with pytest.raises(InvalidArgument, match="holds a Gradients, not a Run"):
        Run.load(tmp_path / "gradients.safetensors")
    walked = fake.gradients({"a": "ab", "s": inputs["s"]}, Logit(5), at="embed", path=IntegratedPath("s", 2))
    assert Gradients.load(walked.save(tmp_path / "path")).inputs["a"].measured == (195, 196)


def test_how_gradients_look(fake: Client) -> None:
    found = fake.gradients("ab", Logit(5), at=["resid_post.*", "embed"], capture="embed")
    assert repr(found).splitlines() == [
        "Gradients",
        "  model             fake   numpy · cpu · bfloat16",
        "  prompt            2 tokens  'ab'",
        "  metric            195",
        "  ∂ resid_post.0…2  [pos 2, d_model 4] bfloat16  hook 'hook1'",
        "  ∂ embed           [pos 2, d_model 4] bfloat16  hook 'hook2'",
        "  embed             [pos 2, d_model 4] bfloat16",
    ]


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def test_a_sweep_is_joined_in_the_order_of_its_plans(client: Client) -> None:
    swept = client.sweep({"x": "ab", "y": "c"}, [Logit(5), LogProb(6)], [[HALVE]] * 8, progress=False)
    assert isinstance(swept, Sweep)
    assert swept.inputs == ("x", "y")
    plans = 10.0 * np.arange(8)
    np.testing.assert_array_equal(swept.measured["x"], np.stack([195 + plans, 196 + plans], axis=1))
    np.testing.assert_array_equal(swept.measured["y"], np.stack([99 + plans, 100 + plans], axis=1))
    assert swept.measured["x"].dtype == np.float64
    assert swept.array("y", 0).axes == {"plan": tuple(range(8))}
    both = swept.array(target=1)
    assert (both.dims, both.shape) == (("input", "plan"), (2, 8))
    assert both.sel(input="y", plan=3).item() == 130
    assert swept.tokens == {"x": ("a", "b"), "y": ("c",)}
    assert repr(swept) == "Sweep(2 inputs; plan (8); fake on numpy)"


def test_axes(client: Client) -> None:
    axes: dict[str, Any] = {"layer": range(2), "position": np.array([4, 9, -1])}
    found = client.sweep("a", Logit(5), [HALVE] * 6, axes=axes, progress=False).array()
    assert (found.dims, found.shape) == (("layer", "position"), (2, 3))
    assert found.sel(layer=1, position=9).item() == 97 + 10 * 4
    assert client.sweep("a", Logit(5), [[]], axes={}, progress=False).array().item() == 97


def test_what_reaches_the_server_of_a_sweep(client: Client, service: FakeService) -> None:
    inputs = {"x": "ab", "s": Input(text="cd", source_only=True)}
    swept = client.sweep(
        inputs,
        {"x": Logit(5)},
        [HALVE, [], [HALVE, HALVE]],
        hooks=steer("embed", np.ones(4)),
        share=False,
        progress=False,
    )
    assert swept.inputs == ("x",)
    assert set(swept.tokens) == {"x", "s"}
    [request] = service.requests
    assert isinstance(request, SweepRequest)
    assert [len(plan.hooks) for plan in request.plans] == [1, 0, 2]
    assert (request.share, request.targets) == (False, (Target(Logit(5), ("x",)),))
    assert [h.site for h in request.base.hooks] == ["embed"]


def test_arrays_that_a_sweep_has_not(fake: Client) -> None:
    inputs, targets = {"x": "ab", "y": "c"}, [Target(Logit(5)), Target(LogProb(6), ("x",))]
    swept = fake.sweep(inputs, targets, [[HALVE]] * 2, progress=False)
    assert swept.array("x", target=1).values.tolist() == [196, 206]
    for call, why in (
        (lambda: swept.array("z"), "no input 'z' was measured; there are x, y"),
        (lambda: swept.array("y", target=1), "no target 1; inputs were measured by 1"),
        (lambda: swept.array(target=1), "no target 1; inputs were measured by 1"),
        (lambda: swept.array("x", target=-1), "no target -1"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            call()


def test_what_no_sweep_can_be(client: Client, service: FakeService) -> None:
    def sweep(plans: Any = ((HALVE,),), target: Any = FIVE, inputs: Any = "a", **more: Any) -> None:
        client.sweep(inputs, target, plans, progress=False, **more)

    for call, why in (
        (lambda: sweep([]), "1 to 16,384 plans, got 0"),
        (lambda: sweep([[]] * 16385), "1 to 16,384 plans, got 16385"),
        (lambda: sweep([[capture("embed")]]), "plan 0 captures at embed"),
        (lambda: sweep(hooks=capture("embed")), "base captures at embed"),
        (lambda: sweep(axes={"layer": range(3)}), "axes layer 3 are 3 plans, but 1 were given"),
        (
            lambda: sweep([[]] * 6, axes={"layer": range(2), "head": range(2)}),
            "axes layer 2 × head 2 are 4 plans, but 6",
        ),
        (lambda: sweep(target=[]), "1 to 256 targets, got 0"),
        (lambda: sweep(inputs={"a": "a", "b": "b"}, target={"a": Logit(5)}), "input 'b' has no target"),
        (lambda: sweep([["embed"]]), "a hook is a Hook or a dict, got str"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            call()
    assert service.requests == []


@pytest.mark.parametrize("broken", ["a plan", "the end", "everything"])
def test_an_answer_with_gaps_is_no_sweep(broken: str) -> None:
    asked = Asked("sweep", (Input(text="a"),), targets=(Target(Logit(5)),), plans=((clients.Plan()),) * 7)
    events: list[Event] = list(FakeService().sweep(asked.request()))
    if broken == "a plan":
        events.remove(next(event for event in events if isinstance(event, Measured)))
    events = events[:-1] if broken == "the end" else [] if broken == "everything" else events
    found = SweepCollector()
    for event in events:
        found.add(event)
    with pytest.raises(Internal, match=r"input 'input' has gaps, or ended early|ended before it began"):
        found.whole(asked)


def test_errors_of_the_server_come_back(client: Client) -> None:
    for call in (
        lambda: client.sweep("fail:RESOURCE_EXHAUSTED:2.5", Logit(5), [[]], progress=False),
        lambda: client.gradients("fail:RESOURCE_EXHAUSTED:2.5", Logit(5), at="embed"),
    ):
        with pytest.raises(clients.ResourceExhausted, match="told to fail") as caught:
            call()
        assert caught.value.retry_after_s == 2.5


def test_a_deadline_cancels_a_sweep(server: Any, service: FakeService) -> None:
    service.before_step = lambda _: time.sleep(0.2)
    for url in (server.grpc_url, server.http_url):
        with Client(url, timeout_s=0.5) as client, pytest.raises(clients.DeadlineExceeded, match=r"timeout_s=0\.5"):
            client.sweep("a", Logit(5), [[]] * 300, progress=False)
        assert wait_for(service.cancelled.is_set)
        service.cancelled.clear()


# ---- token -----------------------------------------------------------------------------------------------------------


class _Texts(FakeService):
    """A tokenizer with a start token, words, and a text that is cut within a character."""

    words = (" Mary", "Mary", "é", " to", "ken")

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        text, tokens = request.input.text or "", ["<bos>"]
        while text:
            found = next((word for word in self.words if text.startswith(word)), text[0])
            tokens += ["\ufffd", "\ufffd"] if found == "é" else [found]
            text = text.removeprefix(found)
        return Tokenized(tuple(range(len(tokens))), tuple(tokens), "".join(tokens))


def test_the_one_token_of_a_text(client: Client) -> None:
    assert client.token("a") == 97
    for text in ("ab", "aa", ""):
        with pytest.raises(InvalidArgument, match=f"{text!r} is {len(text)} tokens .*not one; a leading space"):
            client.token(text)


def test_special_tokens_before_it_do_not_count() -> None:
    client = Client(service=_Texts())
    assert client.token(" Mary") == client.token("x") == 1
    for text in (" token", " Mary ", "é", "", " xMary"):
        with pytest.raises(InvalidArgument, match="not one"):
            client.token(text)


# ---- progress --------------------------------------------------------------------------------------------------------


def test_a_sweep_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch, fake: Client) -> None:
    moves: list[tuple[int, int]] = []

    def bar(label: str, unit: str, *, show: bool = True) -> Any:
        @contextmanager
        def made() -> Generator[Any]:
            assert (label, unit) == ("sweeping", "plans")
            yield lambda done, total: moves.append((done, total)) if show else None

        return made()

    monkeypatch.setattr("probewire.clients.calls.progress_bar", bar)
    fake.sweep({"x": "ab", "y": "c"}, Logit(5), [[]] * 5)
    assert moves == [(3, 10), (5, 10), (8, 10), (10, 10)]
    moves.clear()
    fake.sweep("a", Logit(5), [[]], progress=False)
    assert moves == []


def test_every_input_ends() -> None:
    asked = Asked("gradients", (Input(text="a"),), targets=(Target(Logit(5)),))
    events = list(FakeService().gradients(asked.request()))
    assert isinstance(events[-1], Finished)
    found = Collector()
    for event in events[:-1]:
        found.add(event)
    with pytest.raises(Internal, match="ended before input 'input' did"):
        found.whole(asked)
