"""A variant over the client: in runs, generations, gradients, sweeps and live sessions, what the merged checkpoint is by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends.checkpoints.variants import merge_variant
from probewire.clients import Client, Variant, capture, steer, use
from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import Kl, LogProb, Target
from probewire.protos.model import Input
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.parity.harness import CHUNKED
from tests.parity.opened import OTHER, TOKENS, backend_of, gap
from tests.parity.random_variants import random_variant
from tests.tiny_models import tiny_checkpoint

MERGED = 1e-5
"""Relative to the merged checkpoint, in float32."""
GRADIENTS = 1e-4
N_NEW = 6


@dataclass(frozen=True, slots=True)
class Served:
    """A model with a variant loaded as "a", the variant, and the merged checkpoint as a model of its own."""

    client: Client
    merged: Client
    variant: Variant


def open_client(folder: Path, backend: str) -> Client:
    config = WorkerConfig(str(folder), "tiny", backend=backend, dtype="float32", device="cpu", engine=CHUNKED)
    return Client.inprocess(InProcessService(LocalModel(config, folder)))


@pytest.fixture(scope="module", params=["torch", "mlx"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    tmp = tmp_path_factory.mktemp("served")
    folder = tiny_checkpoint("llama", tmp)
    client = open_client(folder, request.param)
    variant = random_variant(backend_of(client), np.random.default_rng(0)).bound(client.describe())
    client.load_variant(variant, name="a")
    merged = open_client(merge_variant(folder, variant, tmp / "merged").folder, request.param)
    yield Served(client, merged, variant)
    client.close()
    merged.close()


def logits(result: Any) -> Any:
    return result["logits"]


def test_a_run_is_the_merged_checkpoints(served: Served) -> None:
    sites = ["resid_post.*", capture("logits", phase="all")]
    found, wanted = served.client.run(TOKENS, capture=sites, variant="a"), served.merged.run(TOKENS, capture=sites)
    for layer in range(served.client.describe().n_layers):
        assert gap(found[f"resid_post.{layer}"], wanted[f"resid_post.{layer}"]) <= MERGED
    assert gap(logits(found), logits(wanted)) <= MERGED
    assert gap(logits(found), logits(served.client.run(TOKENS, capture=sites))) >= 1e-3
    [told] = found.started.variants
    assert (told.name, told.version, told.hash, told.inputs) == ("a", 1, served.variant.hash, ("input",))


def test_base_and_edited_inputs_of_one_request(served: Served) -> None:
    one = served.client.run(
        {"base": Input(token_ids=tuple(TOKENS), variants=()), "edited": TOKENS}, capture="logits", variant="a"
    )
    base, edited = (served.client.run(TOKENS, capture="logits", variant=own) for own in ((), "a"))
    assert gap(one.inputs["base"]["logits"], logits(base)) <= 1e-6
    assert gap(one.inputs["edited"]["logits"], logits(edited)) <= 1e-6
    assert [told.inputs for told in one.started.variants] == [("edited",)]


def test_divergence_from_the_base_in_one_request(served: Served) -> None:
    inputs = {"base": Input(token_ids=tuple(TOKENS), variants=(), source_only=True), "edited": TOKENS}
    found = served.client.sweep(inputs, Target(Kl("base")), [()], variant="a").array()
    p, q = (_log_softmax(logits(served.client.run(TOKENS, capture="logits", variant=own))[-1]) for own in ((), "a"))
    both = (float((np.exp(p) * (p - q)).sum()), float((np.exp(q) * (q - p)).sum()))
    assert min(abs(float(np.ravel(found)[0]) - one) for one in both) <= 1e-5 * max(both)


def _log_softmax(row: Any) -> Any:
    row = row.astype(np.float64) - row.max()
    return row - np.log(np.exp(row).sum())


def test_a_generation_is_the_merged_checkpoints(served: Served) -> None:
    """The prompt is read in several chunks, beside neighbours of other variants and none."""
    asked: dict[str, Any] = {"capture": "resid_post.1", "max_new_tokens": N_NEW, "ignore_eos": True}
    prompts = {
        "own": TOKENS,
        "base": Input(token_ids=tuple(OTHER), variants=()),
        "half": Input(token_ids=tuple(OTHER), variants=(use("a", 0.5),)),
    }
    found = served.client.generate(prompts, variant="a", **asked)
    wanted = served.merged.generate(TOKENS, **asked)
    own = found.inputs["own"]
    assert own.token_ids == wanted.inputs["input"].token_ids
    assert gap(own["resid_post.1"], wanted["resid_post.1"]) <= MERGED
    base = served.client.generate(OTHER, **asked)
    assert found.inputs["base"].token_ids == base.inputs["input"].token_ids


def test_hooks_beside_a_variant(served: Served) -> None:
    hooks = [steer("resid_post.0", np.linspace(-1, 1, served.client.describe().d_model), 0.7, positions=[2, 5])]
    found, wanted = (
        served.client.run(TOKENS, hooks=hooks, capture="logits", variant="a"),
        served.merged.run(TOKENS, hooks=hooks, capture="logits"),
    )
    assert gap(logits(found), logits(wanted)) <= MERGED


@pytest.mark.parametrize("rules", [(), ("ln", "identity", "half", "ah")])
def test_gradients_are_the_merged_checkpoints(served: Served, rules: tuple[str, ...]) -> None:
    asked: dict[str, Any] = {"at": ["embed", "resid_post.*", "z.1"], "rules": rules}
    prompts, target = {"one": TOKENS, "two": TOKENS[:9]}, LogProb(7)
    found = served.client.gradients(prompts, target, variant="a", **asked)
    wanted = served.merged.gradients(prompts, target, **asked)
    for name in prompts:
        for site in ("embed", "resid_post.0", "z.1"):
            assert gap(found.inputs[name].gradients[site], wanted.inputs[name].gradients[site]) <= GRADIENTS


@pytest.mark.parametrize("share", [True, False])
def test_sweeps_are_the_merged_checkpoints(served: Served, share: bool) -> None:
    d = served.client.describe().d_model
    plans = [[steer(f"resid_post.{layer}", np.ones(d), 0.3, positions=[p])] for layer in (0, 1) for p in (3, 8)]
    found = served.client.sweep(TOKENS, LogProb(7), plans, share=share, variant="a")
    wanted = served.merged.sweep(TOKENS, LogProb(7), plans, share=False)
    assert gap(found.array(), wanted.array()) <= MERGED


def test_a_session_changes_the_strength_between_two_tokens(served: Served) -> None:
    """As a run in which the same variant acts at one strength up to a token and at another from there on."""
    client = served.client
    with client.session(variant=use("a", 1.0)) as live:
        stream = client.stream(
            TOKENS, session=live, capture=capture("resid_post.1"), max_new_tokens=N_NEW, ignore_eos=True
        )
        for step in stream:
            if step.index == 1:
                live.update((), variant=use("a", 0.25))
        found = stream.result
    own = found.inputs["input"]
    revisions = [token.revision for token in own.new]
    assert sorted(set(revisions)) == [1, 2]
    switched = len(TOKENS) + revisions.index(2) - 1  # the row that the first token of revision 2 is sampled from
    tokens = [*TOKENS, *(token.id for token in own.new[:-1])]
    uses = [use("a", 1.0, where={"spans": [(0, switched)]}), use("a", 0.25, where={"spans": [(switched, None)]})]
    run = client.run(Input(token_ids=tuple(tokens)), capture="resid_post.1", variant=uses)
    assert gap(found["resid_post.1"], run["resid_post.1"]) <= MERGED
    assert [told.scale for told in own.revisions[-1].variants] == [0.25]


def test_a_use_at_a_position_that_there_is_not_is_refused(served: Served) -> None:
    with pytest.raises(InvalidArgument, match="variant a: position 500"):
        served.client.run(TOKENS, capture="logits", variant=use("a", where={"positions": [500]}))
