"""Tensors go through the server; they do not stay in it."""

from __future__ import annotations

import psutil
import pytest

from probewire.clients import Client
from tests.apis.serving import Served

BOUND_BYTES = 64 << 20
EVERY_LAYER = ("resid_post.*",)
QUADRATIC = ("resid_post.*", "attn_probs.*")
"""A row of attention as long as all before it, of each head: 96 MB over 2,000 tokens, which would show."""
MEASURED_EVERY = 20  # tokens


def growth(served: Served, model: str, n_tokens: int, sites: tuple[str, ...]) -> dict[str, int]:
    """By how many bytes the gateway and the worker grew at most, while a reader kept up. All rows have come."""
    processes = {"gateway": psutil.Process(served.pid), "worker": served.worker(model)}
    with Client(f"grpc://{served.grpc}") as client:

        def read(n: int) -> dict[str, int]:
            peak = dict.fromkeys(processes, 0)
            rows = 0
            with client.stream("When Mary", capture=sites, model=model, max_new_tokens=n, ignore_eos=True) as stream:
                for index, step in enumerate(stream):
                    rows += len(step["resid_post.2"])
                    if index % MEASURED_EVERY == 0 or index == n - 1:
                        for name, process in processes.items():
                            peak[name] = max(peak[name], process.memory_info().rss)
                n_prompt = len(stream.started.inputs[0].token_ids)
            assert rows == n_prompt + n - 1
            return peak

        before = read(30)
        after = read(n_tokens)
    return {name: after[name] - before[name] for name in processes}


def test_a_generation_leaves_nothing_behind(served: Served, model: str) -> None:
    grown = growth(served, model, 300, EVERY_LAYER)
    assert max(grown.values()) < BOUND_BYTES, grown


@pytest.mark.slow
@pytest.mark.parametrize("sites", [EVERY_LAYER, QUADRATIC], ids=["every layer", "attention too"])
def test_a_long_generation_leaves_nothing_behind(served: Served, model: str, sites: tuple[str, ...]) -> None:
    grown = growth(served, model, 2000, sites)
    assert max(grown.values()) < BOUND_BYTES, grown
