"""Inputs that read one another: the order in which they run, and the runs that others read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from probewire.backends.hooks.sequence import Sequence
from probewire.backends.saes import UserAssets
from probewire.protos.edits import Edit, FromInput, Replace, Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.model import Input
from probewire.protos.spec import Capture, Hook, Plan, Where
from probewire.server.config import RequestLimits, WorkerConfig
from probewire.server.worker.input.binding import Binding
from probewire.server.worker.input.prepared import PreparedInput
from probewire.server.worker.input.sources import check_hook_inputs, set_levels, set_sources, source_sequence
from probewire.server.worker.model import LocalModel
from tests.tiny_models import tiny_checkpoint


def reads(source: str, *inputs: str, site: str = "resid_post.1", where: Where | None = None) -> Hook:
    return Hook(site, edit=Replace(FromInput(source)), inputs=inputs or None, where=where or Where())


def items(*names: str) -> list[PreparedInput]:
    return [PreparedInput(Input("abc", name=name), [1, 2, 3, 4], False) for name in names]


def levels(hooks: list[Hook], *names: str) -> dict[str, int]:
    inputs = items(*names)
    set_levels(inputs, hooks)
    return {one.item.name: one.level for one in inputs}


# ---- names and levels ------------------------------------------------------------------------------------------------


def test_hooks_name_inputs_that_are_there() -> None:
    plan = Plan((Hook("z.0", capture=Capture()), Hook("z.1", capture=Capture(), inputs=("x", "w", "v"))))
    check_hook_inputs(plan, {"x": 1, "w": 2, "v": 3})
    with pytest.raises(InvalidArgument) as caught:
        check_hook_inputs(plan, {"x": 1, "y": 2})
    assert caught.value.message == ("hook 1 (z.1): no inputs ['w', 'v'] in this request; it has ['x', 'y']")


def test_inputs_that_read_nobody_are_on_the_ground() -> None:
    assert levels([], "x", "y") == {"x": 0, "y": 0}
    assert levels([Hook("z.0", edit=Scale(2.0))], "x") == {"x": 0}
    assert levels([], *[]) == {}


def test_an_input_stands_above_all_that_it_reads() -> None:
    hooks = [reads("a", "b"), reads("b", "c"), reads("a", "c"), reads("a", "d")]
    assert levels(hooks, "c", "d", "b", "a") == {"a": 0, "b": 1, "d": 1, "c": 2}


def test_a_hook_for_all_inputs_spares_its_own_source() -> None:
    assert levels([reads("clean")], "clean", "x", "y") == {"clean": 0, "x": 1, "y": 1}


def test_who_reads_an_input_that_is_not_there_reads_nobody() -> None:
    assert levels([reads("gone", "x")], "x") == {"x": 0}, "which is refused where the hook is bound"


@pytest.mark.parametrize(
    ("hooks", "told"),
    [
        ([reads("a", "a")], "{'a': ['a']}"),
        ([reads("a", "b"), reads("b", "a")], "{'a': ['b'], 'b': ['a']}"),
        ([reads("a", "b"), reads("b", "c"), reads("c", "a"), reads("a", "d")], "{'a': ['c'], 'b': ['a'], 'c': ['b'], 'd': ['a']}"),
    ],
)  # fmt: skip
def test_a_circle_is_refused_and_shown(hooks: list[Hook], told: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        levels(hooks, "a", "b", "c", "d")
    assert caught.value.message == f"inputs read each other in a circle: {told}"


def test_a_long_chain_is_no_circle() -> None:
    names = [f"n{i}" for i in range(30)]
    hooks = [reads(a, b) for a, b in pairwise(names)]
    assert levels(hooks, *reversed(names)) == {name: i for i, name in enumerate(names)}


# ---- the runs that others read ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny", device="cpu"), folder)
    yield made
    made.close()


class Request:
    """The inputs of a request with their sequences, bound to a tiny model."""

    def __init__(self, model: LocalModel, hooks: list[Hook], *names: str, n_own: int | None = None) -> None:
        binding = Binding("req-1", model.backend, model.tokenizer, RequestLimits(), UserAssets())
        self.plan = Plan(tuple(hooks))
        self.inputs = [PreparedInput(i, binding.tokens_of(i), False) for i in (Input("abc", name=n) for n in names)]
        self.binding = binding.of(self.inputs, len(hooks) if n_own is None else n_own)
        for one in self.inputs:
            bound = self.binding.bound(self.plan, "run", one)
            one.sequence = Sequence(one.item.name, list(one.tokens), bound.prompt_length, bound)

    def __getitem__(self, name: str) -> PreparedInput:
        return next(one for one in self.inputs if one.item.name == name)


def test_only_an_input_that_others_read_has_a_run_of_its_own(model: LocalModel) -> None:
    request = Request(model, [reads("x", "y")], "x", "y", "z")
    set_sources(request.plan, request.inputs, request.binding)
    source = request["x"].source
    assert source is not None
    assert (source.id, source.tokens, source.prompt_length) == ("req-1.0.source", request["x"].tokens, 4)
    assert request["y"].source is None
    assert request["z"].source is None


def captured(request: Request, name: str) -> dict[str, tuple[int, ...] | None]:
    """Sites that the run of an input captures, and where."""
    sequence = source_sequence("s", request.plan, request[name], request.inputs, request.binding)
    assert sequence is not None
    hooks = [bound.hook for bound in sequence.plan.hooks if bound.hook.capture is not None]
    return {hook.site: hook.where.positions for hook in hooks}


def edits(request: Request, name: str) -> list[Edit | None]:
    """What the run of an input edits, in order."""
    sequence = source_sequence("s", request.plan, request[name], request.inputs, request.binding)
    assert sequence is not None
    assert all(bound.hook.capture is None or bound.hook.edit is None for bound in sequence.plan.hooks)
    return [bound.hook.edit for bound in sequence.plan.hooks if bound.hook.edit is not None]


def test_it_captures_the_rows_that_all_the_others_need_and_no_more(model: LocalModel) -> None:
    hooks = [
        reads("x", "y", where=Where(positions=(3, 1))),
        reads("x", "z", where=Where(positions=(0,))),
        reads("x", "z", site="z.*", where=Where(positions=(-1,))),
        Hook("logits", capture=Capture()),
    ]
    assert captured(Request(model, hooks, "x", "y", "z"), "x") == {
        "resid_post.1": (0, 1, 3),
        "z.0": (3,),
        "z.1": (3,),
        "z.2": (3,),
    }


def test_it_runs_with_its_own_edits_and_keeps_nothing_for_the_caller(model: LocalModel) -> None:
    hooks = [
        Hook("mlp_out.0", edit=Scale(2.0), capture=Capture(store=True)),
        Hook("mlp_out.1", edit=Scale(3.0), inputs=("y",)),
        Hook("mlp_out.2", edit=Scale(4.0), inputs=("x", "y")),
        reads("x", "y"),
    ]
    request = Request(model, hooks, "x", "y")
    assert edits(request, "x") == [Scale(2.0), Scale(4.0)]


def test_a_sessions_edits_act_before_the_requests_own(model: LocalModel) -> None:
    own = [Hook("mlp_out.0", edit=Scale(2.0)), reads("x", "y")]
    request = Request(model, [*own, Hook("mlp_out.0", edit=Scale(5.0))], "x", "y", n_own=2)
    assert edits(request, "x") == [Scale(5.0), Scale(2.0)]


def test_an_input_that_reads_and_is_read_patches_its_run_too(model: LocalModel) -> None:
    request = Request(model, [reads("x", "y"), reads("y", "z")], "x", "y", "z")
    set_sources(request.plan, request.inputs, request.binding)
    source = request["y"].source
    assert source is not None
    assert [bound.needs for bound in source.plan.hooks if bound.needs] == [("x", (0, 1, 2, 3))]
