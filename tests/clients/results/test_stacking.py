"""One array over several inputs."""

from __future__ import annotations

import numpy as np
import pytest
from fake_service import FakeService, expected

from probewire.clients import Client, Gradients, Input, InvalidArgument, Logit, NotFound, TopK, capture, load, patch

EVEN, UNEVEN = {"a": "ab", "b": "cd"}, {"a": "ab", "b": "xyz"}


@pytest.fixture
def fake() -> Client:
    return Client(service=FakeService())


def test_inputs_of_one_length_stack(fake: Client) -> None:
    run = fake.run(EVEN, capture=["resid_post.*", "embed", "logits"])
    stacked = run.stack("resid_post")
    assert stacked.shape == (2, 3, 2, 4)  # input, layer, pos, d_model
    np.testing.assert_array_equal(stacked[1, 2], expected("resid_post.2", [99, 100]))
    assert run.stack("resid_post.1").shape == run.stack("embed").shape == (2, 2, 4)
    assert run.stack("blocks.1.hook_resid_post").shape == (2, 2, 4)
    assert run.stack("resid_post", inputs=True).shape == (2, 3, 2, 4)
    with pytest.raises(ValueError, match="read-only"):
        stacked[0] = 0
    with pytest.raises(NotFound, match=r"input 'a': 'q\.1' was not captured; captured: embed, resid_post\.0"):
        run.stack("q.1")
    with pytest.raises(NotFound, match="input 'a': no layer of 'q'"):
        run.stack("q")
    with pytest.raises(InvalidArgument, match=r"name one: result\.inputs\['a'\]\.stack\('embed'\)"):
        run.stack("embed", inputs=False)


def test_one_input_has_no_axis_unless_asked_for(fake: Client) -> None:
    run = fake.run("ab", capture=["resid_post.*", capture("embed", id="e")])
    assert run.stack("resid_post").shape == (3, 2, 4)
    assert run.stack("resid_post.0").shape == run.stack("e").shape == (2, 4)
    assert run.stack("resid_post", inputs=True).shape == (1, 3, 2, 4)
    assert run.last("resid_post").shape == (3, 4)
    assert run.last("embed", inputs=True).shape == (1, 4)
    assert run.stack("embed") is run["embed"], "no copy"


def test_inputs_of_several_lengths(fake: Client) -> None:
    run = fake.run(UNEVEN, capture="resid_post.*")
    with pytest.raises(
        InvalidArgument,
        match=r"stack\('resid_post'\): the inputs differ in shape \('a' \[3, 2, 4\], 'b' \[3, 3, 4\]\), so they do not "
        r"stack; capture one row of each \(positions=-1, or reduce=\"last\"\), take last\('resid_post'\)",
    ):
        run.stack("resid_post")
    last = run.last("resid_post")
    assert last.shape == (2, 3, 4)
    np.testing.assert_array_equal(last[0, 1], expected("resid_post.1", [98])[0])
    np.testing.assert_array_equal(last[1, 1], expected("resid_post.1", [122])[0])
    for hook in (capture("resid_post.*", positions=-1), capture("resid_post.*", reduce="last")):
        one_row = fake.run(UNEVEN, capture=hook)
        np.testing.assert_array_equal(one_row.stack("resid_post")[:, :, 0], last)
        np.testing.assert_array_equal(one_row.last("resid_post"), last)


def test_the_last_row_of_attention(fake: Client) -> None:
    run = fake.run(EVEN, capture="attn_probs.*")
    assert run.stack("attn_probs").shape == (2, 3, 2, 2, 2)  # input, layer, head, query, key
    last = run.last("attn_probs")
    assert last.shape == (2, 3, 2, 2)  # its query axis gone
    np.testing.assert_array_equal(last, run.stack("attn_probs")[:, :, :, 1])
    with pytest.raises(InvalidArgument, match=r"last\('attn_probs'\): the inputs differ in shape"):
        fake.run(UNEVEN, capture="attn_probs.*").last("attn_probs")


def test_the_last_row_of_a_generation_is_of_the_last_token_that_was_read(fake: Client) -> None:
    result = fake.generate("ab", capture="embed", max_new_tokens=3)  # c d e, of which e is never read
    np.testing.assert_array_equal(result.last("embed"), expected("embed", [100])[0])


def test_a_last_row_that_was_not_captured_is_none(fake: Client) -> None:
    """The last row that there happens to be would be another token's."""
    early = fake.run(UNEVEN, capture=capture("embed", positions=[0, 1]))
    with pytest.raises(
        NotFound,
        match=r"input 'b': embed was captured at positions \[0, 1\], so there is no row of the last token \(position 2\)",
    ):
        early.last("embed")
    assert early.inputs["a"].last("embed").shape == (4,)
    prompt = fake.generate("ab", capture=capture("embed", phase="prompt"), max_new_tokens=3)
    with pytest.raises(NotFound, match="no row of the last token"):
        prompt.last("embed")
    with pytest.raises(NotFound, match=r"positions \[\], so there is no row"):
        fake.run("ab", capture=capture("embed", reduce="mean")).last("embed")
    top = fake.run("ab", capture=capture("embed", reduce=TopK(2)))
    with pytest.raises(InvalidArgument, match="has the parts value, index"):
        top.last("embed")


def test_inputs_that_others_only_read_are_left_out(fake: Client) -> None:
    inputs = {"s": Input(text="zz", source_only=True), **EVEN}
    run = fake.run(inputs, hooks=patch("embed", from_input="s", positions=0), capture="embed")
    assert run.answered == ("a", "b")
    assert run.stack("embed").shape == (2, 2, 4)


def test_texts_and_timings_of_all(fake: Client) -> None:
    result = fake.generate(EVEN, max_new_tokens=2)
    assert result.texts() == {"a": "cd", "b": "ef"}
    assert result.timings == result.inputs["a"].timings
    assert result.inputs["b"].finish_reason == "length"
    for read, fix in (
        (lambda: result.text, r"result\.inputs\['a'\]\.text; or all of them: result\.texts\(\)"),
        (lambda: result.logprobs, r"result\.inputs\['a'\]\.logprobs"),
        (lambda: result.tokens_per_s, r"result\.inputs\['a'\]\.tokens_per_s"),
        (lambda: result.captures, r"result\.stack\(site\)"),
        (lambda: result["embed"], r"result\.inputs\['a'\]\['embed'\]; or all of them: result\.stack\('embed'\)"),
    ):
        with pytest.raises(InvalidArgument, match=fix):
            read()
    many = fake.run(["a"] * 30, capture="embed")
    with pytest.raises(InvalidArgument, match=r"the inputs 0, 1, 2, 3, 4, 5, 6, 7, … \(30 in all\); name one"):
        _ = many.tokens


def test_the_slowest_input_of_each_figure(fake: Client, tmp_path) -> None:
    result = fake.generate(EVEN, max_new_tokens=1)
    slow = load(result.save(tmp_path / "r"))
    item = slow.inputs["b"]
    object.__setattr__(item.finished, "timings", type(item.timings)(0.7, 0.05, 0.4))
    assert slow.timings == type(item.timings)(0.7, 0.1, 0.5)


def test_gradients_stack_as_values_do(fake: Client) -> None:
    found = fake.gradients(EVEN, Logit(5), at="resid_post.*", capture="resid_post.*")
    assert isinstance(found, Gradients)
    np.testing.assert_array_equal(found.stack("resid_post", of="gradients"), -found.stack("resid_post"))
    assert found.metrics() == {"a": 195, "b": 199}
    with pytest.raises(InvalidArgument, match=r"result\.metrics\(\)"):
        _ = found.metric
    with pytest.raises(InvalidArgument, match="of 'x'; allowed: captures, gradients"):
        found.stack("resid_post", of="x")


def test_a_result_is_read_like_a_dict_of_its_sites(fake: Client) -> None:
    run = fake.run("ab", capture=["resid_post.*", capture("embed", id="first")])
    assert list(run) == list(run.keys()) == ["embed", "resid_post.0", "resid_post.1", "resid_post.2"]
    assert list(dict(run)) == list(run.sites)
    assert {name: array.shape for name, array in run.captures.items()} == dict.fromkeys(run.sites, (2, 4))
    assert [array.shape for array in run.captures.values()] == [(2, 4)] * 4
    assert run.captures._ipython_key_completions_() == [*run.sites, "first"]
    assert run._ipython_key_completions_() == run.only._ipython_key_completions_() == list(run.sites)
    assert [site in run.only for site in (*run.only, "q.0")] == [True] * 4 + [False]
    several = fake.run(UNEVEN, capture=[capture("embed", inputs="b"), "resid_post.1"])
    assert list(several) == ["embed", "resid_post.1"]
    with fake.stream("ab", capture="embed", max_new_tokens=1) as stream:
        step = next(stream)
        assert list(step) == list(step.keys()) == step._ipython_key_completions_() == ["embed"]


def test_an_input_shows_what_it_holds(fake: Client) -> None:
    assert repr(fake.run({"a": "ab"}, capture="embed").inputs["a"]).splitlines() == [
        "InputResult 'a'",
        "  prompt  2 tokens  'ab'",
        "  embed   [pos 2, d_model 4] bfloat16",
    ]
