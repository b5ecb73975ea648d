"""Arrays by site, their errors, and how results look."""

from __future__ import annotations

import numpy as np
import pytest
from fake_service import FakeService, expected

from probewire.clients import Client, Generation, Internal, InvalidArgument, NotFound, Run, TopK, capture, load
from probewire.clients.requests.asked import Asked
from probewire.clients.results.collecting import Collector
from probewire.protos.model import Input, RunRequest, Started


@pytest.fixture
def fake() -> Client:
    return Client(service=FakeService())


def test_two_hooks_at_a_site_are_told_apart(fake: Client) -> None:
    run = fake.run("abc", capture=[capture("embed", id="all"), capture("embed", positions=-1)])
    with pytest.raises(
        InvalidArgument, match=r"embed was captured by hooks 0 \(id 'all'\) and 1 \(id 'hook1'\); choose one"
    ):
        run["embed"]
    with pytest.raises(InvalidArgument, match="choose one"):
        run.positions("embed")
    assert run.hook("all")["embed"].shape == (3, 4)
    assert run["all"] is run.hook(0)["embed"]
    assert run.hook(1).positions("embed") == (2,)
    assert run.hook("hook1")["embed"].shape == (1, 4)
    with pytest.raises(NotFound, match=r"no hook|hooks with rows: 0 \('all'\), 1 \('hook1'\)"):
        run.hook("x")


def test_what_was_not_captured(fake: Client) -> None:
    run = fake.run("a", capture=["resid_post.*", "embed"])
    with pytest.raises(NotFound, match=r"'resid_mid.0' was not captured; captured: embed, resid_post.0"):
        run["resid_mid.0"]
    with pytest.raises(NotFound, match="no layer of 'q' was captured"):
        run.stack("q")
    with pytest.raises(InvalidArgument, match=r"stands for several layers; write .stack\('resid_post'\)"):
        run["resid_post.*"]
    assert "embed" in run
    assert "q.0" not in run
    assert run.sites == ("embed", "resid_post.0", "resid_post.1", "resid_post.2")
    assert list(run.captures) == list(run.sites)
    assert len(run.captures) == 4
    item = run.inputs[run.answered[0]]
    for read in (run, item):
        assert [site for site, _ in read.items()] == list(read.keys())
        assert all(array is run[site] for site, array in read.items())
        assert all(one is other for one, (_, other) in zip(read.values(), read.items(), strict=True))


def test_a_hook_of_several_sites_is_no_single_array(fake: Client) -> None:
    run = fake.run("a", capture=capture("resid_post.*", id="r"))
    with pytest.raises(InvalidArgument, match=r"read 3 sites; choose one: .hook\('r'\)\['resid_post.0'\]"):
        run["r"]


def test_stacks(fake: Client) -> None:
    run = fake.run("ab", capture=["resid_post.0", "resid_post.2"])
    assert run.captures.layers("resid_post") == (0, 2)
    stacked = run.stack("resid_post")
    np.testing.assert_array_equal(stacked[1], expected("resid_post.2", [97, 98]))
    assert run.stack("resid_post") is stacked
    uneven = fake.run("ab", capture=["resid_post.0", capture("resid_post.1", positions=0)])
    with pytest.raises(
        InvalidArgument, match=r"resid_post.1 has other rows than resid_post.0 \(positions \[0\] and \[0, 1\]\)"
    ):
        uneven.stack("resid_post")


def test_arrays_are_read_only(fake: Client) -> None:
    run = fake.run("ab", capture="resid_post.*")
    for array in (run["resid_post.0"], run.stack("resid_post")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    generation = fake.generate("ab", capture="embed", max_new_tokens=3)
    with pytest.raises(ValueError, match="read-only"):
        generation["embed"][0] = 0


def test_attention_rows_of_a_generation_share_the_longest_key_axis(fake: Client) -> None:
    result = fake.generate("ab", capture="attn_probs.0", max_new_tokens=2)
    assert result["attn_probs.0"].shape == (2, 3, 3)
    assert result["attn_probs.0"][0, 0].astype(float).tolist() == [97, 97, 0]


def test_repr(fake: Client) -> None:
    result = fake.generate("ab", capture=["resid_post.*", capture("mlp_act.0", reduce=TopK(2))], max_new_tokens=3)
    assert repr(result).splitlines() == [
        "Generation",
        "  model           fake   numpy · cpu · bfloat16",
        "  prompt          2 tokens  'ab'",
        "  text            'cde'",
        "  new             3 tokens, ended by length, 6.0 tokens/s",
        "  resid_post.0…2  [pos 4, d_model 4] bfloat16  hook 'hook0'",
        "  mlp_act.0       [4, 2] int32 index  hook 'hook1'",
        "  mlp_act.0       [4, 2] float32 value  hook 'hook1'",
    ]
    assert repr(fake.run({"a": "x", "b": "y"}, capture="embed")).splitlines() == [
        "Run",
        "  model   fake   numpy · cpu · bfloat16",
        "  [a]",
        "  prompt  1 tokens  'x'",
        "  embed   [pos 1, d_model 4] bfloat16",
        "  [b]",
        "  prompt  1 tokens  'y'",
        "  embed   [pos 1, d_model 4] bfloat16",
    ]


def test_html_escapes_what_a_model_wrote(fake: Client) -> None:
    html = fake.generate("<b>:", max_new_tokens=3)._repr_html_()
    assert "&#x27;;&lt;=&#x27;" in html
    assert "<b>:" not in html


def test_saved_and_loaded(fake: Client, tmp_path) -> None:
    hooks = [
        capture("resid_post.*"),
        capture("resid_post.1", positions=0, id="first"),
        capture("mlp_act.0", reduce=TopK(2)),
        capture("attn_probs.1"),
        capture("embed", store=True),
    ]
    result = fake.generate({"a": "ab", "b": "xyz"}, capture=hooks, max_new_tokens=3, logprobs=1)
    path = result.save(tmp_path / "result.safetensors")
    loaded = load(path)
    assert isinstance(loaded, Generation)
    assert repr(loaded) == repr(result)
    assert loaded.started == result.started
    assert loaded.stored == result.stored
    for name, item in result.inputs.items():
        assert loaded.inputs[name].new == item.new
        for before, after in zip(item.captures.entries, loaded.inputs[name].captures.entries, strict=True):
            assert (after.key, after.id, after.positions) == (before.key, before.id, before.positions)
            assert after.array.dtype == before.array.dtype
            np.testing.assert_array_equal(after.array, before.array)
    assert list(tmp_path.iterdir()) == [path]


def test_loading_what_is_something_else(fake: Client, tmp_path) -> None:
    path = fake.run("a", capture="embed").save(tmp_path / "x.safetensors")
    assert isinstance(Run.load(path), Run)
    with pytest.raises(InvalidArgument, match="holds a Run, not a Generation"):
        Generation.load(path)
    with pytest.raises(NotFound, match="no file"):
        load(tmp_path / "nope")
    (tmp_path / "junk").write_bytes(b"junk" * 10)
    with pytest.raises(InvalidArgument, match="not a safetensors file"):
        load(tmp_path / "junk")


def test_other_safetensors_files_are_refused(tmp_path) -> None:
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(InvalidArgument, match=r"was not written by result\.save"):
        load(tmp_path / "x.safetensors")


def test_an_answer_cut_short_is_no_result() -> None:
    asked = Asked("run", (Input(text="a"),))
    events = list(FakeService().run(RunRequest(asked.inputs)))
    found = Collector()
    with pytest.raises(Internal, match="ended before it began"):
        found.whole(asked)
    for event in events[:-1]:
        found.add(event)
    with pytest.raises(Internal, match="ended before input 'input' did"):
        found.whole(asked)
    assert isinstance(events[0], Started)
