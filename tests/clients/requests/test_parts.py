"""More inputs than one request takes: cut into several, they mean what each means alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_service import FakeService, expected
from hypothesis import given, strategies as st

from probewire.clients import (
    Client,
    FailedPrecondition,
    Hook,
    Input,
    IntegratedPath,
    InvalidArgument,
    Kl,
    LogProb,
    ResourceExhausted,
    Target,
    ablate,
    capture,
    patch,
    steer,
)
from probewire.clients.requests.asked import Asked, reads_of
from probewire.clients.requests.parts import part_from, require_parts
from probewire.protos.model import MAX_INPUTS, Event, Finished, RunRequest, Started, StoredCapture
from probewire.protos.spec import Plan

SITE = "resid_post.1"
UP = np.linspace(-1, 1, 64)


def text(index: int) -> str:
    """Prompts of several lengths, no two alike."""
    return f"{index} " + "abcdefg"[: index % 7]


def model_of(client: Client) -> Any:
    """The model in this process that answers."""
    transport: Any = client._transport
    return transport._service._model


# ---- against the same, asked one by one ------------------------------------------------------------------------------


def test_a_long_list_is_each_alone(tiny: Client) -> None:
    prompts = [text(i) for i in range(70)]
    hooks = [steer(SITE, UP, inputs=[str(i) for i in range(0, 70, 3)]), ablate("mlp_out.2", inputs="69")]
    together = tiny.run(prompts, hooks=hooks, capture=[SITE, capture("logits", positions=-1)])
    assert list(together.inputs) == [str(i) for i in range(70)]
    assert [hook.hook for hook in together.started.hooks] == [0, 1, 2, 3]
    for i in (0, 1, 63, 64, 66, 69):
        own = [replace(hook, inputs=None) for hook in hooks if str(i) in (hook.inputs or ())]
        alone = tiny.run(prompts[i], hooks=own, capture=[SITE, capture("logits", positions=-1)])
        assert together.inputs[str(i)].token_ids == alone.token_ids
        assert together.inputs[str(i)].hook(3).sites == ("logits",)  # its place in the whole plan
        np.testing.assert_allclose(together.inputs[str(i)][SITE], alone[SITE], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(together.inputs[str(i)]["logits"], alone["logits"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", ["interleaved", "sources first", "sources last"])
def test_pairs_stay_together(tiny: Client, order: str) -> None:
    sources = [Input(text=text(i) + " clean", name=f"clean {i}", source_only=True) for i in range(40)]
    runs = [Input(text=text(i) + " other", name=f"other {i}") for i in range(40)]
    inputs = {
        "interleaved": [item for pair in zip(sources, runs, strict=True) for item in pair],
        "sources first": [*sources, *runs],
        "sources last": [*runs, *sources],
    }[order]
    hooks = [patch(SITE, from_input=f"clean {i}", positions=[2, 3], inputs=f"other {i}") for i in range(40)]
    together = tiny.run(inputs, hooks=hooks, capture=capture("logits", positions=-1))
    assert list(together.inputs) == [item.name for item in inputs]
    assert together.answered == tuple(item.name for item in runs)
    for i in (0, 1, 31, 32, 39):
        alone = tiny.run([sources[i], runs[i]], hooks=hooks[i], capture=capture("logits", positions=-1))
        ours, theirs = (found.inputs[f"other {i}"]["logits"] for found in (together, alone))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_what_all_read_goes_along_with_every_part(tiny: Client) -> None:
    """It is answered once, where it stands, and is edited in every part as hooks on it say."""
    inputs = {**{str(i): text(i) + "abc" for i in range(70)}, "source": "source"}
    hooks = [patch(SITE, from_input="source", positions=1), steer("resid_post.0", UP, inputs="source")]
    together = tiny.run(inputs, hooks=hooks, capture=SITE)
    assert list(together.inputs) == list(inputs)
    own = tiny.run("source", hooks=steer("resid_post.0", UP), capture=SITE)[SITE]
    np.testing.assert_allclose(together.inputs["source"][SITE], own, rtol=1e-9, atol=1e-12)
    for i in (0, 63, 64, 69):
        np.testing.assert_allclose(together.inputs[str(i)][SITE][1], own[1], rtol=1e-9, atol=1e-12)


def test_a_seed_counts_through(tiny: Client) -> None:
    prompts = [text(i) for i in range(66)]
    together = tiny.generate(prompts, max_new_tokens=4, temperature=1.0, seed=11)
    for i in (0, 63, 64, 65):
        alone = tiny.generate(prompts[i], max_new_tokens=4, temperature=1.0, seed=11 + i)
        assert together.inputs[str(i)].seed == 11 + i
        assert together.inputs[str(i)].token_ids == alone.token_ids
    drawn = tiny.generate(prompts, max_new_tokens=1, temperature=1.0)
    assert [item.seed - i for i, item in enumerate(drawn.inputs.values())] == [drawn.inputs["0"].seed] * 66


def test_gradients_and_sweeps_too(tiny: Client) -> None:
    prompts = {f"p{i}": [256, *range(i, i + 5)] for i in range(66)}
    base = Input(token_ids=(256, 9, 9, 9, 9, 9), name="base", source_only=True)
    inputs = [base, *(Input(token_ids=tuple(ids), name=name) for name, ids in prompts.items())]
    kl, path = Kl("base"), IntegratedPath("base", 2)
    found = tiny.gradients(inputs, kl, at=[SITE], path=path)
    swept = tiny.sweep(inputs, [kl, LogProb(5)], [[], [ablate("mlp_out.1")]], progress=False)
    assert list(swept.measured) == list(prompts)
    for name in ("p0", "p62", "p63", "p65"):
        pair = [base, next(item for item in inputs if item.name == name)]
        alone = tiny.gradients(pair, kl, at=[SITE], path=path).inputs[name]
        np.testing.assert_allclose(found.inputs[name].gradients[SITE], alone.gradients[SITE], rtol=1e-7, atol=1e-12)
        assert found.inputs[name].measured == pytest.approx(alone.measured, rel=1e-9, abs=1e-12)
        again = tiny.sweep(pair, [kl, LogProb(5)], [[], [ablate("mlp_out.1")]], progress=False)
        np.testing.assert_allclose(swept.measured[name], again.measured[name], rtol=1e-7, atol=1e-12)


# ---- cutting ---------------------------------------------------------------------------------------------------------


def parts_of(asked: Asked, most: int = MAX_INPUTS) -> list[Any]:
    reads, found, at = require_parts(asked), [], 0
    while (part := part_from(asked, reads, at, most)) is not None:
        found.append(part)
        at = part.stop
    return found


@st.composite
def calls(draw: st.DrawFn) -> tuple[Asked, int]:
    """Inputs, some of them sources only, that read one another without circles."""
    n = draw(st.integers(2, 150))
    sources = draw(st.sets(st.integers(0, n - 2), max_size=n - 1))
    order = draw(st.permutations(range(n)))
    reads = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40))
    hooks = [
        patch("embed", from_input=str(min(p)), inputs=str(max(p)), id=f"{i}")
        for i, p in enumerate(reads)
        if p[0] != p[1]
    ]
    unread = sources - {min(p) for p in reads if p[0] != p[1]}
    inputs = [Input(text=str(i), name=str(i), source_only=i in sources - unread) for i in order]
    return Asked("generate", tuple(inputs), Plan(tuple(hooks))), draw(st.integers(1, MAX_INPUTS))


@given(calls())
def test_every_input_is_answered_once_beside_all_that_it_reads(call: tuple[Asked, int]) -> None:
    asked, most = call
    asked = replace(asked, sampling=replace(asked.sampling, seed=100))
    parts, refused = [], ""
    try:
        parts = parts_of(asked, most)
    except InvalidArgument as error:
        refused = error.message
    if refused:  # sources in a row that nobody reads in the end, or one input that reads too many
        assert re.search("no other input reads them|takes 64 in all", refused)
        return
    answered = [name for part in parts for name in part.asked.answered]
    assert answered == list(asked.answered)
    reads = reads_of(asked)
    places = {item.name: index for index, item in enumerate(asked.inputs)}
    for part in parts:
        names = [item.name for item in part.asked.inputs]
        assert len(names) <= MAX_INPUTS
        assert len(part.asked.answered) <= most
        assert set().union(*(reads[name] for name in names)) <= set(names)
        seeds = {name: part.asked.sampling.seed + i for i, name in enumerate(names)}
        assert all(seeds[name] == 100 + places[name] for name in part.asked.answered)
        kept = {hook.id for hook in part.asked.plan.hooks}
        assert kept == {hook.id for hook in asked.plan.hooks if set(hook.inputs or ()) & set(names)}
        assert [asked.plan.hooks[i].id for i in part.hooks] == [hook.id for hook in part.asked.plan.hooks]
        part.asked.request()


def test_what_cannot_be_cut(client: Client, service: FakeService) -> None:
    many = {str(i): "a" for i in range(70)}
    source = {"s": Input(text="a", source_only=True)}
    crowd = [patch("embed", from_input=str(i), inputs="69") for i in range(64)]
    for call, why in (
        (lambda: client.run(many, hooks=ablate("embed", inputs="x")), r"hook 0 \(embed\): no inputs \['x'\].*62 more"),
        (lambda: client.run(many, hooks=patch("embed", from_input="x")), r"no inputs \['x'\]"),
        (lambda: client.gradients(many, {"x": LogProb(1)}, at="embed"), r"target 0: no inputs \['x'\]"),
        (lambda: client.gradients(many, LogProb(1), at="embed", path=IntegratedPath("x")), "path: no inputs"),
        (lambda: client.sweep(many, Kl("x"), [[]], progress=False), r"target 0: no inputs \['x'\]"),
        (lambda: client.sweep(many, LogProb(1), [[ablate("embed", inputs="x")]], progress=False), "plan 0: hook 0"),
        (lambda: client.run({**many, **source}), r"inputs \['s'\] are source_only, but no other input reads them"),
        (lambda: client.run(many, hooks=crowd), "input '69' reads 64 other inputs, and a request takes 64 in all"),
        (lambda: client.gradients(many, {"0": LogProb(1)}, at="embed"), "input '1' has 0 targets"),
        (lambda: client.run([Input(text="a", name="n")] * 70), "distinct names"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            call()
    assert service.requests == [], "refused before anything is sent"


# ---- one after the other ---------------------------------------------------------------------------------------------


def test_several_requests_in_order(client: Client, service: FakeService) -> None:
    prompts = [chr(97 + i % 26) * (1 + i % 3) for i in range(200)]
    run = client.run(prompts, capture=SITE)
    assert [len(request.inputs) for request in service.requests] == [64, 64, 64, 8]
    assert list(run.inputs) == [str(i) for i in range(200)]
    np.testing.assert_array_equal(run.inputs["199"][SITE], expected(SITE, [ord(c) for c in prompts[199]]))
    assert [begun.name for begun in run.started.inputs] == list(run.inputs)


def test_a_bar_over_all_of_them(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    moves: list[tuple[int, int]] = []

    class Bar:
        def __init__(self, label: str, unit: str, *, show: bool) -> None:
            assert (label, unit, show) == ("running", "prompts", True)

        def __enter__(self) -> Any:
            return lambda done, total: moves.append((done, total))

        def __exit__(self, *_: object) -> None:
            moves.append((-1, -1))

    monkeypatch.setattr("probewire.clients.calls.progress_bar", Bar)
    client.run(["a"] * 64)
    assert moves == []
    client.run(["a"] * 66)
    assert moves == [*((i, 66) for i in range(1, 67)), (-1, -1)]


class Crowded(FakeService):
    """Takes so many inputs a request, as a server does whose limit is on what they capture."""

    most = 10
    retry_after_s: float | None = None

    def run(self, request: RunRequest) -> Iterator[Event]:
        self.requests.append(request)
        if len(request.inputs) > self.most:
            raise ResourceExhausted("too much at once", retry_after_s=self.retry_after_s)
        yield from super().run(request)
        self.requests.pop()


def test_requests_too_large_for_the_server_are_cut_further() -> None:
    service = Crowded()
    client = Client(service=service)
    run = client.run([chr(97 + i) for i in range(20)], capture="embed")
    assert [len(request.inputs) for request in service.requests] == [20, 10, 10]
    assert [item.token_ids for item in run.inputs.values()] == [(97 + i,) for i in range(20)]
    service.most = 0
    with pytest.raises(ResourceExhausted, match="too much"):
        client.run(["a", "b", "c"])
    assert [len(request.inputs) for request in service.requests[3:]] == [3, 1]
    service.retry_after_s = 2.0
    with pytest.raises(ResourceExhausted):
        client.run(["a", "b"])
    assert len(service.requests) == 6, "a server that is busy is not asked again at once"


def test_the_servers_own_limit(tiny: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tiny)
    limits = model.config.limits
    monkeypatch.setattr(
        model, "config", replace(model.config, limits=replace(limits, max_capture_bytes=64 * 8 * 8 * 3))
    )
    prompts = ["abcdefg"] * 10  # of 8 tokens, 64 wide, in float64: three fit
    run = tiny.run(prompts, capture=SITE)
    assert run.stack(SITE).shape == (10, 8, 64)
    with pytest.raises(ResourceExhausted, match="captures asked for"):
        tiny.run("a" * 100, capture=SITE)


class Changing(FakeService):
    """Another model answers the second request, or none."""

    error: Exception | None = None
    deleted: list[str]

    def run(self, request: RunRequest) -> Iterator[Event]:
        again = bool(self.requests)
        for event in super().run(request):
            if again and self.error is not None and isinstance(event, Finished):
                raise self.error
            yield replace(event, model_hash="other") if again and isinstance(event, Started) else event


def test_a_model_that_changes_in_between_is_told() -> None:
    client = Client(service=Changing())
    with pytest.raises(FailedPrecondition, match="model_hash: 'abc123', now 'other'"):
        client.run(["a"] * 70)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), NotImplementedError("a bug")])
def test_whatever_ends_it_leaves_nothing_on_the_server(error: BaseException) -> None:
    class Ending(FakeService):
        open = 0

        def run(self, request: RunRequest) -> Iterator[Event]:
            again, self.open = bool(self.requests), self.open + 1
            try:
                for event in super().run(request):
                    yield event
                    if again and isinstance(event, Finished) and event.input == "66":
                        raise error
            finally:
                self.open -= 1

    service = Ending()
    caught: list[BaseException] = []
    try:
        Client(service=service).run(["a"] * 70, capture=capture("embed", store=True))
    except BaseException as raised:  # noqa: BLE001 - a KeyboardInterrupt too; it is looked at below
        caught.append(raised)  # with its traceback, as a notebook keeps the last one
    assert caught
    assert (service.open, service.stored) == (0, {}), "captures whose ids nobody has are deleted"


def test_what_the_caller_raises_ends_the_request(tiny: Client) -> None:
    """The stream is closed then, though the traceback still holds it."""
    model = model_of(tiny)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    class Bar:
        def __enter__(self) -> Any:
            return interrupted

        def __exit__(self, *_: object) -> None: ...

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("probewire.clients.calls.progress_bar", lambda *_, **__: Bar())
        with pytest.raises(KeyboardInterrupt) as caught:
            tiny.generate("abc", max_new_tokens=200, ignore_eos=True, progress=True)
    assert caught.value.__traceback__ is not None
    assert model.scheduler.call(lambda: len(model.scheduler.jobs)) == 0


def test_hooks_and_targets_keep_their_places() -> None:
    inputs = tuple(Input(text="a", name=str(i)) for i in range(70))
    plan = Plan(
        (Hook("embed", capture=capture("embed").capture, inputs=("69",)), capture("logits"), capture("embed", id="x"))
    )
    asked = Asked("gradients", inputs, plan, targets=(Target(LogProb(1), tuple(str(i) for i in range(70))),))
    first, second = parts_of(asked)
    assert (first.hooks, second.hooks) == ((1, 2), (0, 1, 2))
    assert second.asked.targets[0].inputs == tuple(str(i) for i in range(64, 70))
    kept = StoredCapture("c", "embed", "0", (0,), "float32", (1, 1))
    assert first.told(kept) is kept
