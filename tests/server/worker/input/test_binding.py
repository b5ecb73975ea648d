"""What the plans of one request are bound to: its tokens within their limits, and a plan made concrete for an input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from probewire.backends.saes import UserAssets
from probewire.protos.edits import FromInput, Replace, Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.model import Input
from probewire.protos.spec import Capture, Hook, Plan
from probewire.server.config import RequestLimits, WorkerConfig
from probewire.server.worker.input.binding import Binding
from probewire.server.worker.input.prepared import PreparedInput
from probewire.server.worker.model import LocalModel
from tests.tiny_models import tiny_checkpoint

CONTEXT = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"), max_position_embeddings=CONTEXT)
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny", device="cpu"), folder)
    yield made
    made.close()


@pytest.fixture
def binding(model: LocalModel) -> Binding:
    return Binding("req-1", model.backend, model.tokenizer, RequestLimits(), UserAssets())


def ready(binding: Binding, item: Input, *, generates: bool = False) -> PreparedInput:
    return PreparedInput(item, binding.tokens_of(item), generates)


def refused(read: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        read()
    return caught.value.message


def test_a_text_is_a_token_a_byte_behind_the_beginning(binding: Binding) -> None:
    assert len(binding.tokens_of(Input("abc"))) == 4
    assert binding.tokens_of(Input(token_ids=(7, 8))) == [7, 8]
    assert binding.info.id == "tiny"


def test_the_models_context_bounds_an_input(binding: Binding) -> None:
    assert len(binding.tokens_of(Input(token_ids=(7,) * CONTEXT))) == CONTEXT
    message = refused(lambda: binding.tokens_of(Input(token_ids=(7,) * (CONTEXT + 1), name="x")))
    assert message.startswith(
        f"input 'x' has {CONTEXT + 1} tokens; at most {CONTEXT} are allowed (the model has no more"
    )


def test_the_operators_limit_bounds_it_where_that_is_lower(binding: Binding) -> None:
    bounded = replace(binding, limits=RequestLimits(max_prompt_tokens=3))
    assert len(bounded.tokens_of(Input("ab"))) == 3
    assert "at most 3 are allowed" in refused(lambda: bounded.tokens_of(Input("abc")))


def test_the_reason_for_a_short_context_is_told_with_it(binding: Binding, model: LocalModel) -> None:
    class Noted:
        info = replace(model.backend.info, context_note="a window of the attention")

    noted: Any = Noted()
    message = refused(lambda: replace(binding, backend=noted).tokens_of(Input("x" * CONTEXT)))
    assert message.endswith(f"at most {CONTEXT} are allowed (a window of the attention)")
    limited = replace(binding, backend=noted, limits=RequestLimits(max_prompt_tokens=3))
    assert "window" not in refused(lambda: limited.tokens_of(Input("x" * CONTEXT))), "it is the operator's limit"


def test_a_prompt_length_is_within_the_tokens(binding: Binding) -> None:
    assert len(binding.tokens_of(Input("abc", prompt_length=4))) == 4
    message = refused(lambda: binding.tokens_of(Input("abc", name="x", prompt_length=5)))
    assert message == "input 'x': prompt_length 5 is above its 4 tokens"


def test_inputs_are_known_by_their_lengths(binding: Binding) -> None:
    inputs = [ready(binding, Input("abc", name="x")), ready(binding, Input("a", name="y"))]
    known = binding.of(inputs, n_own=2)
    assert (dict(known.lengths), known.n_own) == ({"x": 4, "y": 2}, 2)
    assert dict(binding.lengths) == {}
    assert known.backend is binding.backend


def test_a_run_repeats_a_generation_by_its_prompt_length(binding: Binding) -> None:
    item = ready(binding, Input("abcdef", prompt_length=3))
    plan = binding.bound(Plan(), "run", item)
    assert (plan.mode, plan.prompt_length, plan.n_rows) == ("run", 3, 7)
    assert binding.bound(Plan(), "run", ready(binding, Input("abc"))).prompt_length == 4


def test_a_generation_has_rows_for_what_it_makes(binding: Binding) -> None:
    plan = binding.bound(Plan(), "generate", ready(binding, Input("abc"), generates=True), n_new=9)
    assert (plan.mode, plan.prompt_length, plan.n_rows) == ("generate", 4, 13)


def test_only_hooks_of_the_input_are_bound(binding: Binding) -> None:
    hooks = (Hook("z.0", capture=Capture(), inputs=("y",)), Hook("resid_post.*", capture=Capture()))
    plan = binding.bound(Plan(hooks), "run", ready(binding, Input("abc", name="x")))
    [bound] = plan.hooks
    assert (bound.index, [str(site) for site in bound.sites]) == (1, [f"resid_post.{layer}" for layer in range(3)])


def test_a_requests_own_hooks_act_behind_its_sessions(binding: Binding) -> None:
    own, of_session = Hook("mlp_out.1", edit=Scale(2.0)), Hook("mlp_out.1", edit=Scale(3.0))
    item = ready(binding, Input("abc"))
    for applied_last, order in ((0, [0, 1]), (1, [1, 0])):
        plan = binding.bound(Plan((own, of_session)), "run", item, applied_last=applied_last)
        [acting] = plan.at.values()
        assert [one.bound.index for one in acting] == order


def test_what_reads_another_input_says_which_rows_it_needs(binding: Binding) -> None:
    x, y = (ready(binding, Input("abc", name=name)) for name in "xy")
    hook = Hook("resid_post.0", edit=Replace(FromInput("y", positions=(0, 1, 2, -1))), inputs=("x",))
    plan = binding.of([x, y]).bound(Plan((hook,)), "run", x)
    assert plan.hooks[0].needs == ("y", (0, 1, 2, 3))
    assert "there is no input 'y'" in refused(lambda: binding.of([x]).bound(Plan((hook,)), "run", x))


def test_a_site_that_the_model_has_not_is_refused_with_the_hook(binding: Binding) -> None:
    item = ready(binding, Input("abc"))
    hooks = (Hook("z.0", capture=Capture()), Hook("z.9", capture=Capture()))
    assert refused(lambda: binding.bound(Plan(hooks), "run", item)).startswith("hook 1 (z.9)")
