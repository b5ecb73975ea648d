"""Requests for gradients made ready: rules, metrics and paths that fit the model and the inputs, or are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from probewire.backends.model.limits import Limits
from probewire.backends.saes import UserAssets
from probewire.protos.edits import FromInput, Replace
from probewire.protos.errors import InvalidArgument, ProbewireError, ResourceExhausted
from probewire.protos.gradients import GradientsRequest, IntegratedPath
from probewire.protos.metrics import Coordinate, Logit, Target
from probewire.protos.model import Input
from probewire.protos.spec import Capture, Hook, Plan
from probewire.server.config import RequestLimits, WorkerConfig
from probewire.server.worker.forwards import GRADIENT_COST
from probewire.server.worker.input.binding import Binding
from probewire.server.worker.input.gradients import metrics_of, prepare_gradients
from probewire.server.worker.input.prepared import PreparedInput
from probewire.server.worker.model import LocalModel
from tests.tiny_models import VOCAB_SIZE, tiny_checkpoint

TARGETS = (Target(Logit(5)),)
GRADIENT = Hook("resid_post.1", capture=Capture(gradient=True))
RUN_TOKENS = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    engine = Limits(n_slots=2, context_tokens=128, cache_tokens=256, chunk_tokens=16, max_run_tokens=RUN_TOKENS)
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny", device="cpu", engine=engine), folder)
    yield made
    made.close()


@pytest.fixture
def binding(model: LocalModel) -> Binding:
    return Binding("req-1", model.backend, model.tokenizer, RequestLimits(), UserAssets())


def asked(*inputs: Input, hooks: tuple[Hook, ...] = (), targets: Any = TARGETS, **more: Any) -> GradientsRequest:
    return GradientsRequest(inputs or (Input("abc"),), targets, plan=Plan(hooks), **more)


def refused(binding: Binding, request: GradientsRequest, kind: type[ProbewireError] = InvalidArgument) -> str:
    with pytest.raises(kind) as caught:
        prepare_gradients(request, binding)
    return caught.value.message


def test_an_input_is_a_sequence_with_its_metric_and_how_gradients_are_taken(binding: Binding) -> None:
    prepared = prepare_gradients(asked(Input("abc", name="x"), Input("de", name="y"), hooks=(GRADIENT,)), binding)
    assert prepared.mode == "gradients"
    for item, length in zip(prepared.inputs, (4, 3), strict=True):
        assert item.sequence is not None
        assert (item.sequence.plan.mode, item.sequence.prompt_length) == ("gradients", length)
        assert len(item.sequence.metrics) == 1
        assert item.sequence.backward is not None
        assert (item.sequence.backward.rules, item.sequence.backward.path) == (frozenset(), None)
        assert not item.generates
    assert [hook.sites for hook in prepared.started.hooks] == [("resid_post.1",)]


def test_a_source_alone_has_no_gradient(binding: Binding) -> None:
    patch = Hook("resid_post.0", edit=Replace(FromInput("clean")), inputs=("x",))
    inputs = (Input("abc", name="clean", source_only=True), Input("abd", name="x"))
    prepared = prepare_gradients(asked(*inputs, hooks=(patch,)), binding)
    assert prepared.inputs[0].sequence is None
    assert prepared.inputs[0].source is not None
    assert [item.level for item in prepared.inputs] == [0, 1]


def test_rules_are_those_of_the_model(binding: Binding, model: LocalModel) -> None:
    rules = model.backend.info.rules
    assert rules
    prepared = prepare_gradients(asked(rules=rules), binding)
    assert prepared.inputs[0].sequence is not None
    assert prepared.inputs[0].sequence.backward is not None
    assert prepared.inputs[0].sequence.backward.rules == frozenset(rules)

    class Ruleless:
        info = replace(model.backend.info, rules=())

    ruleless: Any = Ruleless()
    message = refused(replace(binding, backend=ruleless), asked(rules=rules[:1]))
    assert message.startswith(f"rules {[rules[0]]} cannot be honoured on")
    assert message.endswith("allowed here: none")


def test_a_gradient_that_does_not_fit_a_batch_by_itself_is_refused(binding: Binding) -> None:
    most = RUN_TOKENS // GRADIENT_COST
    prepare_gradients(asked(Input(token_ids=(7,) * most)), binding)
    message = refused(binding, asked(Input(token_ids=(7,) * (most + 1), name="x")), ResourceExhausted)
    assert message.startswith(f"the gradient of input 'x' takes {most + 1} token rows")
    assert f"at most {most} are allowed: shorten the prompt, or lower path.steps" in message


def path(site: str = "embed", source: str = "y", steps: int = 3) -> IntegratedPath:
    return IntegratedPath(source=source, site=site, steps=steps)


PAIR = (Input("abc", name="x"), Input("abd", name="y", source_only=True))


def test_a_path_needs_the_rows_of_its_other_end(binding: Binding) -> None:
    prepared = prepare_gradients(asked(*PAIR, hooks=(GRADIENT,), path=path()), binding)
    x, y = prepared.inputs
    assert x.sequence is not None
    assert x.sequence.backward is not None
    assert x.sequence.backward.path is not None
    assert x.sequence.backward.path.other.needs == ("y", (0, 1, 2, 3))
    assert y.source is not None, "which its run captures"


@pytest.mark.parametrize(
    ("inputs", "given", "hooks", "told"),
    [
        (PAIR, path("logits"), (), "path.site logits cannot be walked along; take embed or another site of rows"),
        (PAIR, path("attn_probs.1"), (), "path.site attn_probs.1 cannot be walked along"),
        (PAIR, path("resid_post.9"), (), "path"),
        (PAIR, path(source="z"), (), "path.source: there is no input 'z'; the request has ['x', 'y']"),
        (
            (PAIR[0], Input("abcd", name="y", source_only=True)),
            path(),
            (),
            "a path needs inputs of equal length: 'y' has 5 tokens, 'x' has 4",
        ),
        (
            PAIR,
            path(),
            (Hook("z.1", capture=Capture()),),
            "hook 0 (z.1): on a path values differ at each point; read them in a run",
        ),
    ],
)
def test_a_path_that_cannot_be_walked_is_refused(
    binding: Binding, inputs: tuple[Input, ...], given: IntegratedPath, hooks: tuple[Hook, ...], told: str
) -> None:
    assert refused(binding, asked(*inputs, hooks=hooks, path=given)).startswith(told)


@pytest.mark.parametrize(
    ("hooks", "targets", "told"),
    [
        ((Hook("z.9", capture=Capture()),), TARGETS, "hook 0 (z.9)"),
        ((Hook("z.1", capture=Capture(), inputs=("q",)),), TARGETS, "hook 0 (z.1): no inputs ['q']"),
        ((), (Target(Logit(VOCAB_SIZE)),), "target 0 of input 'x'"),
        ((), (Target(Logit(5, position=9)),), "target 0 of input 'x'"),
        ((), (Target(Coordinate("resid_post.9", 0, unit=1)),), "target 0"),
    ],
)
def test_what_does_not_fit_model_or_input_is_refused_where_it_stands(
    binding: Binding, hooks: tuple[Hook, ...], targets: tuple[Target, ...], told: str
) -> None:
    assert refused(binding, asked(Input("abc", name="x"), hooks=hooks, targets=targets)).startswith(told)


def test_each_input_has_the_targets_that_name_it(binding: Binding) -> None:
    targets = (Target(Logit(5), inputs=("x",)), Target(Logit(6), inputs=("y",)), Target(Logit(7)))
    items = [PreparedInput(i, binding.tokens_of(i), False) for i in (Input("ab", name="x"), Input("c", name="y"))]
    found = [metrics_of(item, targets, binding.info, {"x": 3, "y": 2}) for item in items]
    assert [len(metrics) for metrics in found] == [2, 2]
