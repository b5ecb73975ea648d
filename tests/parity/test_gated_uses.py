"""A use with a latched condition: the prompt, read by the base, decides whether the variant acts at what follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from probewire.clients import Client, Hook, Input, Plan, Variant, use
from probewire.protos.conditions import AllOf, AnyOf, Condition
from probewire.protos.edits import Add
from probewire.protos.errors import InvalidArgument
from probewire.protos.spec import Where
from tests.parity.opened import Opened, backend_of, both
from tests.parity.random_variants import random_variant

TOKENS = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3]
SITE, UNIT, N = "resid_post.1", 5, 5


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    made = Opened(tmp_path_factory.mktemp("gated"))
    yield made
    made.close()


@pytest.fixture
def client(opened: Opened, request: pytest.FixtureRequest) -> Client:
    made = opened("llama", request.getfixturevalue("backend"))
    if not any(one.name == "v" for one in made.variants()):
        made.load_variant(random_variant(backend_of(made), np.random.default_rng(3), 2), name="v")
        steer = Hook("resid_mid.1", Add(np.random.default_rng(4).normal(size=made.describe().d_model)))
        made.load_variant(Variant(plan=Plan((steer,))), name="h")
    return made


def generated(client: Client, variant: Any, tokens: list[int] = TOKENS) -> tuple[list[int], Any]:
    found = client.generate(tokens, max_new_tokens=N, ignore_eos=True, capture=["resid_post.*"], variant=variant)
    return list(found.token_ids), np.concatenate([np.asarray(found.captures[s]) for s in sorted(found.captures)], -1)


def coordinate(client: Client, latch: str) -> float:
    rows = np.asarray(client.run(TOKENS, capture=SITE).captures[SITE])[:, UNIT]
    return float(rows[-1] if latch == "last" else rows.mean())


def when(client: Client, latch: Any, *, holds: bool) -> Condition:
    value = coordinate(client, latch)
    return Condition(value - 0.01 if holds else value + 0.01, site=SITE, unit=UNIT, latch=latch)


@both
@pytest.mark.parametrize("latch", ["last", "mean"])
@pytest.mark.parametrize("name", ["v", "h"])
def test_the_prompt_decides(client: Client, backend: str, latch: str, name: str) -> None:
    base, acting = generated(client, ()), generated(client, use(name, 1.5, where=Where(phase="generated")))
    assert np.abs(base[1] - acting[1]).max() > 1e-2
    for holds, wanted in ((True, acting), (False, base)):
        found = generated(client, use(name, 1.5, where=Where(when=when(client, latch, holds=holds))))
        assert found[0] == wanted[0]
        assert np.array_equal(found[1], wanted[1])


@both
def test_of_several_conditions_all_or_any(client: Client, backend: str) -> None:
    yes, no = (when(client, "last", holds=holds) for holds in (True, False))
    base, acting = generated(client, ()), generated(client, use("v", where=Where(phase="generated")))
    for several, wanted in ((AllOf((yes, no)), base), (AnyOf((no, yes)), acting), (AllOf((yes, yes)), acting)):
        assert np.array_equal(generated(client, use("v", where=Where(when=several)))[1], wanted[1])


@both
def test_each_sequence_of_a_batch_decides_for_itself(client: Client, backend: str) -> None:
    prompts = [TOKENS, TOKENS[::-1], TOKENS[3:], [9, 8, 7, 6]]
    values = [float(np.asarray(client.run(one, capture=SITE).captures[SITE])[-1, UNIT]) for one in prompts]
    gate = use("v", where=Where(when=Condition(float(np.median(values)), site=SITE, unit=UNIT, latch="last")))
    inputs = {f"s{i}": Input(token_ids=one) for i, one in enumerate(prompts)}
    found = client.generate(inputs, max_new_tokens=N, ignore_eos=True, capture=[SITE], variant=gate)
    for name, item in inputs.items():
        alone = generated(client, gate, list(item.token_ids or ()))
        assert list(found.inputs[name].token_ids) == alone[0]


@both
def test_a_site_that_is_not_there(client: Client, backend: str) -> None:
    for site, unit in (("resid_post.9", 1), (SITE, 10_000)):
        gate = use("v", where=Where(when=Condition(0.0, site=site, unit=unit, latch="last")))
        with pytest.raises(InvalidArgument, match="the condition of variant v"):
            generated(client, gate)


@both
def test_one_forward_over_prompt_and_what_follows_is_refused_and_nobody_else_notices(
    client: Client, backend: str
) -> None:
    gate = use("v", where=Where(when=when(client, "last", holds=True)))
    forced = Input(token_ids=TOKENS, prompt_length=4, variants=gate)
    for ask in (
        lambda: client.run(forced, capture=SITE),
        lambda: client.run({"a": forced, "b": Input(token_ids=TOKENS)}),
    ):
        with pytest.raises(InvalidArgument, match="is decided by the prompt before what follows"):
            ask()
    whole = client.run(Input(token_ids=TOKENS, variants=gate), capture=SITE).captures[SITE]
    assert np.array_equal(whole, client.run(TOKENS, capture=SITE).captures[SITE]), "a prompt runs on the base"
