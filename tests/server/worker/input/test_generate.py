"""Generations and runs made ready: refused before anything runs, seeded, levelled, and told of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends.model.limits import Limits
from probewire.backends.saes import UserAssets
from probewire.protos.edits import FromInput, Replace, Scale
from probewire.protos.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from probewire.protos.model import GenerateRequest, Input, RunRequest, Sampling
from probewire.protos.sessions import Session
from probewire.protos.spec import Capture, Hook, Plan, Where
from probewire.server.config import RequestLimits, WorkerConfig
from probewire.server.worker.input.binding import Binding
from probewire.server.worker.input.generate import SEEDS, followed, prepare_generate, prepare_run
from probewire.server.worker.model import LocalModel
from tests.tiny_models import tiny_checkpoint

READ, SCALED = Hook("resid_post.1", capture=Capture()), Hook("mlp_out.1", edit=Scale(0.5))
SESSION = Session("ses-1", "", "tiny", Plan((SCALED,)), 4)
PATCH = Hook("resid_post.0", edit=Replace(FromInput("clean")), where=Where(phase="prompt"), inputs=("x",))
PAIR = (Input("abc", name="clean", source_only=True), Input("abd", name="x"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    engine = Limits(n_slots=2, context_tokens=64, cache_tokens=128, chunk_tokens=16)
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny", device="cpu", engine=engine), folder)
    yield made
    made.close()


@pytest.fixture
def binding(model: LocalModel) -> Binding:
    limits = RequestLimits(max_new_tokens=100, max_capture_bytes=100_000)
    return Binding("req-1", model.backend, model.tokenizer, limits, UserAssets())


def generation(*inputs: Input, plan: Plan | None = None, **sampling: Any) -> GenerateRequest:
    sampling.setdefault("max_new_tokens", 3)
    return GenerateRequest(inputs or (Input("abc"),), plan=plan or Plan(), sampling=Sampling(**sampling))


def refused(read: Any) -> str:
    with pytest.raises((InvalidArgument, FailedPrecondition, ResourceExhausted)) as caught:
        read()
    return caught.value.message


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_model_that_does_not_generate_says_why(binding: Binding, model: LocalModel) -> None:
    class Mute:
        info = replace(model.backend.info, generate_note="its cache is of a kind we do not know")
        engine = None

    mute: Any = Mute()
    with pytest.raises(FailedPrecondition) as caught:
        prepare_generate(generation(), replace(binding, backend=mute))
    assert caught.value.message == ("model tiny does not generate on torch: its cache is of a kind we do not know")


def test_more_new_tokens_than_the_operator_allows_are_refused(binding: Binding) -> None:
    message = refused(lambda: prepare_generate(generation(max_new_tokens=101), binding))
    assert message == "sampling.max_new_tokens 101 is above the limit of 100"


def test_what_never_fits_into_the_cache_is_refused_at_once(binding: Binding) -> None:
    prepare_generate(generation(max_new_tokens=60), binding)
    message = refused(lambda: prepare_generate(generation(Input("abc", name="x"), max_new_tokens=61), binding))
    assert message.startswith("input 'x' ")
    assert message.endswith("shorten the prompt or lower max_new_tokens")


def test_a_prompt_length_is_for_runs(binding: Binding) -> None:
    item = Input("abc", name="x", prompt_length=2)
    assert "input 'x': prompt_length is for runs" in refused(lambda: prepare_generate(generation(item), binding))
    prepared = prepare_run(RunRequest((item,)), binding)
    assert prepared.inputs[0].sequence is not None
    assert prepared.inputs[0].sequence.prompt_length == 2


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (Hook("z.1", capture=Capture(), inputs=("y",)), "hook 0 (z.1): no inputs ['y'] in this request"),
        (Hook("z.9", capture=Capture()), "hook 0 (z.9)"),
        (Hook("resid_post.0", edit=Replace(FromInput("input")), inputs=("input",)), "in a circle"),
        (Hook("logits", capture=Capture(dtype="float32")), "the captures asked for come to about"),
    ],
)
def test_a_hook_that_cannot_be_honoured_is_refused_in_runs_and_generations(
    binding: Binding, hook: Hook, told: str
) -> None:
    long, plan = Input("a" * 59), Plan((hook,))
    small = replace(binding, limits=replace(binding.limits, max_capture_bytes=1000))
    assert told in refused(lambda: prepare_run(RunRequest((long,), plan=plan), small))
    assert told in refused(lambda: prepare_generate(generation(long, plan=plan), small))


# ---- what is made ----------------------------------------------------------------------------------------------------


def test_each_input_is_a_sequence_with_its_own_seed(binding: Binding) -> None:
    prepared = prepare_generate(generation(Input("a", name="x"), Input("b", name="y"), seed=7), binding)
    sequences = [item.sequence for item in prepared.inputs if item.sequence is not None]
    assert [(s.id, s.seed, s.sampling.seed) for s in sequences] == [("req-1.0", 7, 7), ("req-1.1", 8, 7)]
    assert [item.seed for item in prepared.started.inputs] == [7, 8]
    assert all(item.generates for item in prepared.inputs)


def test_after_the_largest_seed_comes_zero(binding: Binding) -> None:
    prepared = prepare_generate(generation(Input("a", name="x"), Input("b", name="y"), seed=SEEDS - 1), binding)
    assert [item.seed for item in prepared.started.inputs] == [SEEDS - 1, 0]


def test_a_seed_that_is_not_given_is_drawn_and_told(binding: Binding) -> None:
    seeds = {prepare_generate(generation(), binding).started.inputs[0].seed for _ in range(5)}
    assert len(seeds) > 1


def test_a_generation_has_a_row_for_all_but_its_last_token(binding: Binding) -> None:
    prepared = prepare_generate(generation(Input("abc"), max_new_tokens=5), binding)
    assert prepared.inputs[0].sequence is not None
    assert prepared.inputs[0].sequence.plan.n_rows == 4 + 5 - 1


def test_the_start_tells_tokens_hooks_and_model(binding: Binding) -> None:
    started = prepare_run(RunRequest((Input("ab", name="x"),), plan=Plan((READ,))), binding).started
    [told] = started.inputs
    assert (told.name, len(told.token_ids), told.tokens[1:], told.seed) == ("x", 3, ("a", "b"), 0)
    assert [(hook.hook, hook.id, hook.sites) for hook in started.hooks] == [(0, "hook0", ("resid_post.1",))]
    assert (started.request_id, started.model, started.backend, started.n_layers) == ("req-1", "tiny", "torch", 3)
    assert started.revision == 0


def test_layers_may_be_counted_from_the_end(binding: Binding) -> None:
    plan = Plan((Hook("resid_post.-1", capture=Capture()),))
    started = prepare_run(RunRequest((Input("ab"),), plan=plan), binding).started
    assert started.hooks[0].sites == ("resid_post.2",)


def test_what_is_kept_is_counted_beforehand(binding: Binding) -> None:
    kept = Hook("resid_post.1", capture=Capture(store=True, dtype="float32"))
    assert prepare_run(RunRequest((Input("abc"),), plan=Plan((kept,))), binding).store_bytes == 4 * 64 * 4
    assert prepare_run(RunRequest((Input("abc"),), plan=Plan((READ,))), binding).store_bytes == 0


def test_a_source_alone_generates_nothing_and_runs_before(binding: Binding) -> None:
    prepared = prepare_generate(generation(*PAIR, plan=Plan((PATCH,))), binding)
    clean, x = prepared.inputs
    assert (clean.sequence, clean.generates, clean.level) == (None, False, 0)
    assert clean.source is not None
    assert clean.source.id == "req-1.0.source"
    assert (x.generates, x.level, x.source) == (True, 1, None)
    assert x.sequence is not None
    assert x.sequence.plan.hooks[0].needs == ("clean", (0, 1, 2, 3))
    assert prepared.started.inputs[0].seed == 0


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_a_sessions_hooks_stand_behind_the_requests_own_and_act_first(binding: Binding) -> None:
    prepared = prepare_generate(generation(plan=Plan((READ,))), binding, SESSION)
    assert prepared.plan == followed(Plan((READ,)), SESSION) == Plan((READ, SCALED))
    assert (prepared.own_plan, prepared.session, prepared.plans) == (Plan((READ,)), "ses-1", {4: prepared.plan})
    assert prepared.started.revision == 4
    assert prepared.inputs[0].sequence is not None
    assert prepared.inputs[0].sequence.plan.revision == 4


def test_hooks_of_one_id_in_request_and_session_are_refused() -> None:
    session = replace(SESSION, plan=Plan((replace(SCALED, id="mine"),)))
    assert "mine" in refused(lambda: followed(Plan((replace(READ, id="mine"),)), session))


def test_a_later_revision_gives_each_sequence_another_plan_and_changes_none(binding: Binding) -> None:
    prepared = prepare_generate(generation(*PAIR, plan=Plan((PATCH,))), binding, SESSION)
    before = [item.sequence.plan for item in prepared.inputs if item.sequence is not None]
    later = replace(SESSION, plan=Plan((Hook("mlp_out.2", edit=Scale(2.0)),)), revision=5)
    found = prepared.revised(later)
    assert [sequence.id for sequence, _ in found] == ["req-1.0.source", "req-1.1"]
    for _, plan in found:
        assert plan.revision == 5
        assert "mlp_out.2" in {str(site) for bound in plan.hooks for site in bound.sites}
    assert [item.sequence.plan for item in prepared.inputs if item.sequence is not None] == before


def test_a_source_that_has_run_is_not_run_again_for_a_revision(binding: Binding) -> None:
    prepared = prepare_generate(generation(*PAIR, plan=Plan((PATCH,))), binding, SESSION)
    rows = {"resid_post.0": {position: np.zeros(64, np.float32) for position in range(4)}}
    prepared.rows["clean"] = rows
    [(sequence, plan)] = prepared.revised(replace(SESSION, revision=5))
    assert sequence.id == "req-1.1"
    assert plan.hooks[0].needs is None, "the rows are given at once"


def test_a_revision_past_a_limit_is_refused_for_the_generations_under_way(binding: Binding) -> None:
    prepared = prepare_generate(generation(), replace(binding, limits=RequestLimits(max_capture_bytes=1000)), SESSION)
    greedy = replace(SESSION, plan=Plan((Hook("logits", capture=Capture()),)), revision=5)
    assert "the captures asked for come to about" in refused(lambda: prepared.revised(greedy))
