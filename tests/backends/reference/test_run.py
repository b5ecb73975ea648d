"""Plans on a model worked out on paper: order, conditions, attention, sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.backends.reference.run import run
from probewire.protos.edits import Add, FromInput, Inline, Replace, Scale, Stored, Zeros
from probewire.protos.errors import InvalidArgument, NotFound
from probewire.protos.spec import AllOf, AnyOf, Capture, Condition, Hook, LowRank, Mean, NextLogprob, Plan, Span, Where
from probewire.protos.tensors import Tensor
from tests.backends.reference.toy import A, B, C, D, averaging_model, capture_after, captured

same = np.testing.assert_allclose


def vector(*values: Any) -> Tensor:
    return Tensor.of(np.array(values, dtype=np.float32))


def value(result: Any, hook: int, site: str) -> Any:
    return result.captures[hook, site, ""].values


def test_plain_run() -> None:
    result = captured(
        [A, B], *(Hook(site, capture=Capture()) for site in ("attn_probs.0", "attn_out.0", "resid_post.0"))
    )
    same(value(result, 0, "attn_probs.0"), [[[1, 0], [0.5, 0.5]]] * 2)
    same(value(result, 1, "attn_out.0"), [[1, 1], [1, 0]])  # means of (1, 1) and (1, −1)
    same(value(result, 2, "resid_post.0"), [[2, 2], [2, -1]])


def test_logits_of_the_run_are_those_after_every_edit() -> None:
    # final_norm of A alone is (1, 1): dot products 2, 0, 0, −2
    same(captured([A]).logits, [[2, 0, 0, -2]])
    same(captured([A], Hook("logits", Add(vector(0, 5, 0, 0)))).logits, [[2, 5, 0, -2]])


def test_hooks_at_a_site_apply_in_plan_order_and_captures_see_their_own_edit() -> None:
    result = captured(
        [A],
        Hook("resid_pre.0", capture=Capture()),
        Hook("resid_pre.0", Add(vector(1, 0)), Capture()),
        Hook("resid_pre.0", Scale(3.0), Capture()),
        Hook("resid_pre.0", Scale(0.0), Capture(before=True)),
        Hook("resid_pre.0", capture=Capture()),
    )
    rows = [value(result, i, "resid_pre.0")[0].tolist() for i in range(5)]
    assert rows == [[1, 1], [2, 1], [6, 3], [1, 1], [0, 0]]


def test_embed_enters_layer_0_and_resid_post_is_the_next_resid_pre() -> None:
    result = captured(
        [A],
        Hook("resid_pre.0", capture=Capture()),
        Hook("embed", Add(vector(1, 2)), Capture()),
        Hook("resid_pre.1", Scale(2.0), Capture(before=True)),
        Hook("resid_post.0", Add(vector(0, 10)), Capture()),
        Hook("resid_pre.1", capture=Capture()),
    )
    same(value(result, 1, "embed"), [[2, 3]])
    same(value(result, 0, "resid_pre.0"), [[2, 3]])
    after_layer_0 = value(result, 3, "resid_post.0")
    same(value(result, 2, "resid_pre.1"), after_layer_0)
    same(value(result, 4, "resid_pre.1"), 2 * after_layer_0)


def test_an_edit_reaches_the_chosen_rows_and_no_others() -> None:
    hook = Hook("resid_pre.0", Scale(5.0), where=Where(positions=(-1,)))
    same(capture_after(hook, "resid_pre.0", [A, B, C]), [[1, 1], [1, -1], [-5, 5]])


def test_an_edited_stream_is_what_later_layers_read() -> None:
    # position 0 becomes (2, 2), normed (1, 1): the stream shows it, position 1's attention does not
    hook = Hook("resid_pre.0", Scale(2.0), where=Where(positions=(0,)))
    same(capture_after(hook, "resid_post.0", [A, B]), [[3, 3], [2, -1]])


def test_pattern_stands_for_every_layer() -> None:
    result = captured([A, B], Hook("attn_out.*", Replace(Zeros())), Hook("resid_post.*", capture=Capture()))
    for layer in (0, 1):
        same(value(result, 1, f"resid_post.{layer}"), [[1, 1], [1, -1]])


def test_scores_edited_at_a_key_move_the_probabilities() -> None:
    # head 1 of query 1: scores ln 3 and 0
    edit = Add(vector(np.log(3)), units=(0,), heads=(1,))
    result = captured([A, B], Hook("attn_scores.0", edit, Capture()), Hook("attn_probs.0", capture=Capture()))
    same(value(result, 0, "attn_scores.0")[1], [[np.log(3), -np.inf], [np.log(3), 0]])
    same(value(result, 1, "attn_probs.0"), [[[1, 0], [0.5, 0.5]], [[1, 0], [0.75, 0.25]]])


def test_probabilities_are_not_renormalised_after_an_edit() -> None:
    knock_out = Hook("attn_probs.0", Replace(Zeros(), units=(0,)), where=Where(positions=(1,)))
    # z of query 1 is half of B's values, and nothing of A's
    same(capture_after(knock_out, "z.0", [A, B])[..., 0], [[1, 1], [0.5, -0.5]])


def test_attention_captures_are_head_query_key() -> None:
    result = captured([A, B, C], Hook("attn_probs.0", capture=Capture(), where=Where(positions=(2, 1))))
    sent = result.captures[0, "attn_probs.0", ""]
    assert sent.positions == (1, 2)
    same(sent.values, [[[0.5, 0.5, 0], [1 / 3] * 3]] * 2)


def test_condition_reads_its_own_site_after_earlier_hooks() -> None:
    result = captured(
        [A, C],
        Hook("resid_pre.0", Add(vector(1, 0))),  # (2, 1) and (0, 1)
        Hook("resid_pre.0", Scale(10.0), Capture(), Where(when=Condition(1.5, unit=0))),
    )
    sent = result.captures[1, "resid_pre.0", ""]
    assert sent.positions == (0,)
    same(sent.values, [[20, 10]])


def test_condition_reads_an_earlier_site_after_all_its_edits() -> None:
    when = Condition(0.0, site="embed", unit=1)
    result = captured(
        [A, B],
        Hook("resid_pre.1", capture=Capture(), where=Where(when=when)),
        Hook("embed", Scale(-1.0)),  # (−1, −1) and (−1, 1)
    )
    assert result.captures[0, "resid_pre.1", ""].positions == (1,)


@pytest.mark.parametrize("site", ["resid_post.1", "attn_probs.0", "mlp_up.0"])
def test_condition_refuses_later_and_attention_sites(site: str) -> None:
    with pytest.raises(InvalidArgument, match="condition"):
        captured([A], Hook("z.0", Scale(1.0), where=Where(when=Condition(0.0, site=site, unit=0))))


@pytest.mark.parametrize(("latch", "reached"), [("last", ()), ("mean", (3, 4))])
def test_latched_condition_is_decided_by_the_prompt_and_holds_for_generated_rows(
    latch: Any, reached: tuple[int, ...]
) -> None:
    # unit 0 over the prompt: 1, 1, −1
    where = Where(when=Condition(0.0, unit=0, latch=latch))
    result = captured([A, B, C, D, A], Hook("embed", capture=Capture(), where=where), prompt_length=3)
    assert result.captures[0, "embed", ""].positions == reached


@pytest.mark.parametrize(
    ("when", "reached"),
    [
        # A (1, 1), B (1, −1), C (−1, 1), D (−1, −1): unit 0 is + + − −, unit 1 + − + −
        (AllOf((Condition(0.0, unit=0), Condition(0.0, unit=1))), (0,)),
        (AnyOf((Condition(0.0, unit=0), Condition(0.0, unit=1))), (0, 1, 2)),
        (AllOf((Condition(0.0, unit=0, op="lt"), Condition(0.0, unit=1))), (2,)),
        (AnyOf((Condition(0.0, unit=0, op="lt"), Condition(0.0, unit=1))), (0, 2, 3)),
        (AllOf((Condition(5.0, unit=0), Condition(0.0, unit=1))), ()),
        (AnyOf((Condition(5.0, unit=0), Condition(5.0, unit=1))), ()),
        (AllOf((Condition(0.0, site="embed", unit=0), Condition(2.5, unit=0), Condition(0.0, unit=1))), (0,)),
        (AnyOf((Condition(0.0, unit=0),)), (0, 1)),
    ],
)
def test_the_truth_table_of_conditions_together(when: AllOf | AnyOf, reached: tuple[int, ...]) -> None:
    tripled = Hook("resid_pre.0", Scale(3.0))
    result = captured([A, B, C, D], tripled, Hook("resid_pre.0", capture=Capture(), where=Where(when=when)))
    assert result.captures[1, "resid_pre.0", ""].positions == reached


@pytest.mark.parametrize(
    ("kind", "reached"),
    [(AllOf, (3, 4)), (AnyOf, (3, 4, 5))],
)
def test_each_condition_has_its_own_latch(kind: type[AllOf | AnyOf], reached: tuple[int, ...]) -> None:
    """Unit 0 over the prompt A, B, C: mean 1/3, so true for all that is generated; unit 1 each row for itself."""
    latched, own = Condition(0.0, unit=0, latch="mean"), Condition(0.0, unit=1)
    where = Where(when=kind((latched, own)))
    result = captured([A, B, C, A, C, D], Hook("embed", capture=Capture(), where=where), prompt_length=3)
    assert result.captures[0, "embed", ""].positions == reached


def test_inline_rows_pair_with_positions_in_the_order_given() -> None:
    rows = Replace(Inline(vector([10, 20], [30, 40])))
    hook = Hook("embed", rows, where=Where(positions=(2, 0)))
    same(capture_after(hook, "embed", [A, B, C]), [[30, 40], [1, -1], [10, 20]])


def test_pairs_are_made_before_the_condition_speaks() -> None:
    rows = Replace(Inline(vector([10, 20], [30, 40])))
    hook = Hook("embed", rows, where=Where(when=Condition(0.0, unit=1, op="lt")))
    same(capture_after(hook, "embed", [A, B]), [[1, 1], [30, 40]])


def test_source_rows_and_positions_must_match_in_number() -> None:
    with pytest.raises(InvalidArgument, match="2 rows, the hook chooses 3"):
        captured([A, B, C], Hook("embed", Replace(Inline(vector([10, 20], [30, 40])))))


def test_stored_capture_brings_its_rows() -> None:
    hook = Hook("embed", Replace(Stored("x"), units=(1,)), where=Where(positions=(1,)))
    same(capture_after(hook, "embed", [A, B], stored={"x": np.array([[7.0, 8.0]])}), [[1, 1], [1, 8]])


def test_stored_capture_of_a_pattern_brings_each_site_its_own() -> None:
    stored = {"x": np.array([[[1.0, 2.0]], [[3.0, 4.0]]])}
    result = captured([A], Hook("resid_post.*", Replace(Stored("x")), Capture()), stored=stored)
    same(value(result, 0, "resid_post.0"), [[1, 2]])
    same(value(result, 0, "resid_post.1"), [[3, 4]])


def test_another_input_lends_its_rows() -> None:
    hook = Hook("embed", Replace(FromInput("clean", positions=(-1, 0))), where=Where(positions=(0, 2)))
    same(capture_after(hook, "embed", [A, A, A], others={"clean": [B, C]}), [[-1, 1], [1, 1], [1, -1]])


def test_positions_from_the_end_are_so_in_either_input() -> None:
    """A, B, C, D are embedded as (1, 1), (1, −1), (−1, 1), (−1, −1)."""
    for where, expected in (
        (Where(positions=(-1, 0)), [[1, -1], [1, 1], [-1, -1]]),
        (Where(spans=(Span(-2, None),)), [[1, 1], [-1, 1], [-1, -1]]),
        (Where(spans=(Span(0, 2),)), [[1, -1], [-1, 1], [1, 1]]),
    ):
        hook = Hook("embed", Replace(FromInput("longer")), where=where)
        same(capture_after(hook, "embed", [A, A, A], others={"longer": [B, C, B, C, D]}), expected)


def test_another_input_runs_with_the_hooks_that_apply_to_it() -> None:
    plan = Plan(
        (
            Hook("embed", Scale(3.0), inputs=("clean",)),
            Hook("embed", Add(vector(0, 1))),
            Hook("resid_pre.0", Replace(FromInput("clean"))),
            Hook("resid_pre.0", capture=Capture(), inputs=("here",)),
        )
    )
    result = run(averaging_model(), [A], plan, input_name="here", others={"clean": [D]})
    same(value(result, 3, "resid_pre.0"), [[-3, -2]])


def test_inputs_that_wait_for_one_another_are_refused() -> None:
    plan = Plan(
        (
            Hook("embed", Replace(FromInput("b")), inputs=("a",)),
            Hook("embed", Replace(FromInput("a")), inputs=("b",)),
        )
    )
    with pytest.raises(InvalidArgument, match="a → b → a"):
        run(averaging_model(), [A], plan, input_name="a", others={"b": [B]})


def test_patching_with_itself_changes_nothing() -> None:
    plan = Plan((Hook("z.*", Replace(FromInput("twin"))), Hook("attn_scores.*", Replace(FromInput("twin")))))
    tokens = [A, B, B, C]
    same(run(averaging_model(), tokens, plan, others={"twin": tokens}).logits, averaging_model().forward(tokens))


def test_attention_rows_of_a_shorter_input_serve_the_queries_they_cover() -> None:
    hook = Hook("attn_probs.0", Replace(FromInput("short")), where=Where(positions=(0, 1)))
    same(capture_after(hook, "attn_probs.0", [A, B, C], others={"short": [D, D]})[0, 1], [0.5, 0.5, 0])
    late = Hook("attn_probs.0", Replace(FromInput("short", positions=(1,))), where=Where(positions=(2,)))
    with pytest.raises(InvalidArgument, match="2 keys"):
        capture_after(late, "attn_probs.0", [A, B, C], others={"short": [D, D]})


def test_low_rank_reads_the_edited_input() -> None:
    # z doubled to (2, 2): out is (2, 2) + (in · (1, 0)) (0, 1)
    hooks = (
        Hook("z.0", Scale(2.0)),
        Hook("attn_out.0", LowRank(vector([1], [0]), vector([0, 1])), Capture()),
    )
    same(value(captured([A], *hooks), 1, "attn_out.0"), [[2, 4]])


def test_low_rank_needs_a_linear_site() -> None:
    with pytest.raises(InvalidArgument, match="no single linear module"):
        captured([A], Hook("resid_post.0", LowRank(vector([1], [0]), vector([0, 1]))))


def test_mean_and_next_logprob_of_a_run() -> None:
    result = captured(
        [A, B], Hook("embed", capture=Capture(reduce=Mean())), Hook("logits", capture=Capture(reduce=NextLogprob()))
    )
    same(value(result, 0, "embed"), [[1, 0]])
    sent = result.captures[1, "logits", ""]
    assert sent.positions == (0,)
    same(sent.values, [0 - np.log(np.exp([2, 0, 0, -2]).sum())], rtol=1e-6)


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        (Hook("router_logits.0", capture=Capture()), "averaging has no router_logits.0"),
        (Hook("resid_post.2", capture=Capture()), "layers 0:2"),
        (Hook("module:model.layers.0:input", capture=Capture()), "has no module"),
        (Hook("embed", Replace(Stored("y"))), "no stored capture 'y'"),
        (Hook("embed", Replace(FromInput("y"))), "no input 'y'"),
    ],
)
def test_refusals(hook: Hook, said: str) -> None:
    with pytest.raises((InvalidArgument, NotFound), match=said):
        captured([A], hook)


def test_prompt_length_lies_within_the_tokens() -> None:
    with pytest.raises(InvalidArgument, match="prompt_length 3"):
        captured([A, B], prompt_length=3)
