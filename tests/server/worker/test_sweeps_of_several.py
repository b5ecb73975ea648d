"""A sweep over several inputs that each read a source: every plan of every input is measured once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from probewire.backends.model.limits import Limits
from probewire.clients import Client, Input, Logit, patch
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

SMALL = Limits(n_slots=4, context_tokens=128, cache_tokens=1024, chunk_tokens=32, page_tokens=32, max_run_tokens=32)
"""A few plans a batch, so that inputs take turns."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("models"))
    with Client.inprocess(InProcessService.create(str(folder), dtype="float32", engine=SMALL)) as made:
        yield made


@pytest.mark.parametrize("share", [True, False])
def test_each_plan_of_each_input_once(client: Client, share: bool) -> None:
    rng = np.random.default_rng(0)
    inputs: dict[str, Input] = {}
    for i in range(3):
        ids, other = (tuple(rng.integers(1, 250, 8 + i).tolist()) for _ in range(2))
        inputs[f"own{i}"] = Input(token_ids=ids)
        inputs[f"source{i}"] = Input(token_ids=other, source_only=True)
    plans = [
        [patch(f"resid_pre.{layer}", from_input=f"source{i}", positions=p, inputs=f"own{i}") for i in range(3)]
        for layer in range(3)
        for p in range(8)
    ]
    swept = client.sweep(inputs, Logit(5), plans, axes={"layer": range(3), "position": range(8)}, share=share)
    assert swept.inputs == ("own0", "own1", "own2")
    for i in range(3):
        pair = {name: inputs[name] for name in (f"own{i}", f"source{i}")}
        alone = [[hook for hook in plan if hook.inputs == (f"own{i}",)] for plan in plans]
        expected = client.sweep(pair, Logit(5), alone).measured[f"own{i}"]
        np.testing.assert_allclose(swept.measured[f"own{i}"], expected, atol=1e-5)
