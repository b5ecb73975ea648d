"""Pairs of prompts: what pairs, and what is refused."""

from __future__ import annotations

import pytest

from probewire.analysis.attribution.pairs import MAX_PAIRS, check_direction, make_pairs, same_length
from probewire.clients import Client, InvalidArgument, Kl, Logit, WeightedSum

METRIC = Logit(65)


def test_sides_are_inputs_by_name(tiny: Client) -> None:
    [one, other] = make_pairs(tiny, ["abc", "defg"], ["abd", "defh"], METRIC)
    assert (one.name("clean"), other.name("corrupt")) == ("clean 0", "corrupt 1")
    assert one.input("corrupt", source_only=True).token_ids == tiny.tokenize("abd").token_ids
    assert other.tokens("clean")[-1] == "g"
    assert (len(one), len(other)) == (4, 5)


def test_prompts_must_pair(tiny: Client) -> None:
    with pytest.raises(InvalidArgument, match="has 4 tokens and the corrupt one 5"):
        make_pairs(tiny, "abc", "abcd", METRIC)
    with pytest.raises(InvalidArgument, match="2 clean prompts and 1 corrupt ones"):
        make_pairs(tiny, ["abc", "abd"], ["abe"], METRIC)
    with pytest.raises(InvalidArgument, match="3 metrics for 2 pairs"):
        make_pairs(tiny, ["abc", "abd"], ["abe", "abf"], [METRIC] * 3)
    with pytest.raises(InvalidArgument, match=f"1 to {MAX_PAIRS}"):
        make_pairs(tiny, ["abc"] * 40, ["abd"] * 40, METRIC)
    with pytest.raises(InvalidArgument, match="4, 5 tokens; here needs prompts of one length"):
        same_length(make_pairs(tiny, ["abc", "abcd"], ["abd", "abce"], METRIC), "here")


def test_a_kl_has_the_baseline_of_its_own_pair(tiny: Client) -> None:
    [pair] = make_pairs(tiny, "abc", "abd", Kl("clean"))
    [baseline] = pair.baselines
    assert pair.metric == Kl(baseline.name)
    assert (baseline.token_ids, baseline.source_only) == (pair.clean, True)
    with pytest.raises(InvalidArgument, match='baseline "clean" or "corrupt"'):
        make_pairs(tiny, "abc", "abd", Kl("other"))
    [summed] = make_pairs(tiny, "abc", "abd", WeightedSum((Kl("clean"), METRIC), (1.0, -2.0)))
    assert summed.metric == WeightedSum((Kl(baseline.name), METRIC), (1.0, -2.0))
    assert summed.baselines == pair.baselines
    with pytest.raises(InvalidArgument, match="got 'clean', 'corrupt'"):
        make_pairs(tiny, "abc", "abd", WeightedSum((Kl("clean"), Kl("corrupt"))))


def test_direction() -> None:
    assert check_direction("denoise") == ("corrupt", "clean")
    with pytest.raises(InvalidArgument, match="'patch'; allowed: denoise"):
        check_direction("patch")
