"""(a) Eight greedy generations at once: through the server read or not, steered or not, and on the bare engine."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import median
from typing import TypedDict

import numpy as np
import prompts
from child import Child
from concurrency import together
from ratios import Figure, Samples, compare, interleaved
from servers import model_folder, probewire
from sizes import Sizes

from probewire.clients import Client, Hook, steer

__all__ = ["Asked", "mlx_streams", "one_stream", "steering", "torch_streams"]

LAYER = 12
PLAIN, EVERY, ONE, STEERED, BARE = (
    "not captured",
    "resid_post.* captured",
    "one layer captured",
    "one site steered",
    "bare engine",
)


PLAIN_LONG, BARE_LONG = "not captured, long", "bare engine, long"


class Asked(TypedDict, total=False):
    """What a request asks for besides its prompt."""

    capture: list[str]
    hooks: list[Hook]


def torch_streams(sizes: Sizes) -> list[Figure]:
    """Our torch worker against transformers' continuous batching."""
    return _streams("torch", sizes)


def mlx_streams(sizes: Sizes) -> list[Figure]:
    """Our MLX worker against mlx-lm's batch generator."""
    small = replace(sizes, n_new=sizes.mlx_n_new, n_steady=sizes.mlx_n_new, rounds=sizes.mlx_rounds)
    return _streams("mlx", small)


def _streams(backend: str, sizes: Sizes) -> list[Figure]:
    with (
        probewire(backend) as served,
        Client(served.grpc) as client,
        Child("bare_engine.py", backend, str(model_folder())) as bare,
    ):
        eight = prompts.short(client)
        variants: dict[str, Asked] = {
            PLAIN: {},
            EVERY: {"capture": ["resid_post.*"]},
            ONE: {"capture": [f"resid_post.{LAYER}"]},
            STEERED: {"hooks": [steering(client)]},
        }
        # What is compared stands side by side: a shared machine's speed changes within a round.
        timed = {BARE: partial(_bare, bare, eight, sizes.n_new)}
        timed |= {name: partial(eight_streams, client, eight, sizes.n_new, asked) for name, asked in variants.items()}
        timed[PLAIN_LONG] = partial(eight_streams, client, eight, sizes.n_steady, {})
        timed[BARE_LONG] = partial(_bare, bare, eight, sizes.n_steady)
        samples = interleaved(timed, rounds=sizes.rounds, any_order=True)
    return _figures(backend, samples)


def _figures(backend: str, samples: Samples) -> list[Figure]:
    def row(what: str, pair: tuple[str, str], target: float, note: str = "") -> Figure:
        return compare(f"{backend}, eight streams: {what}", samples, pair, unit="tok/s", target=target, note=note)

    return [
        row(f"{EVERY} / {PLAIN}", (EVERY, PLAIN), 0.85, _cost(samples, EVERY, PLAIN)),
        row(f"{PLAIN_LONG} / {BARE_LONG}", (PLAIN_LONG, BARE_LONG), 0.9, _cost(samples, PLAIN_LONG, BARE_LONG)),
        row(f"{PLAIN} / {BARE}", (PLAIN, BARE), 0.9, _cost(samples, PLAIN, BARE)),
        row(f"{ONE} / {PLAIN}", (ONE, PLAIN), 0.95, _cost(samples, ONE, PLAIN)),
        row(f"{STEERED} / {PLAIN}", (STEERED, PLAIN), 0.95, _cost(samples, STEERED, PLAIN)),
    ]


def _cost(samples: Samples, dearer: str, cheaper: str) -> str:
    """What a step of the eight costs more, in milliseconds."""
    steps = [8e3 / median(samples[name]) for name in (dearer, cheaper)]
    return f"{steps[0]:.1f} ms a step of all eight against {steps[1]:.1f} ms, so {steps[0] - steps[1]:+.1f} ms"


def steering(client: Client) -> Hook:
    """A steering vector of a usual size at one site."""
    vector = np.random.default_rng(0).standard_normal(client.describe().d_model).astype(np.float32)
    return steer(f"resid_post.{LAYER}", vector / np.linalg.norm(vector), alpha=2.0)


def eight_streams(client: Client, asked_prompts: list[list[int]], n_new: int, asked: Asked) -> float:
    """Tokens a second, from the first request sent to the last token read."""
    seconds, counts = together(partial(one_stream, client, n_new=n_new, asked=asked), asked_prompts)
    return sum(counts) / seconds


def one_stream(client: Client, prompt: list[int], *, n_new: int, asked: Asked) -> int:
    """Read a generation to its end, every captured array too; gives the number of its tokens."""
    n_tokens = n_rows = 0
    with client.stream(prompt, max_new_tokens=n_new, ignore_eos=True, **asked) as stream:
        for step in stream:
            n_tokens += step.token is not None
            n_rows += sum(len(step[site]) for site in step.captures) if asked.get("capture") else 0
        n_sites = sum(len(hook.sites) for hook in stream.started.hooks if asked.get("capture"))
    expected = n_sites * (len(prompt) + n_new - 1)
    if (n_tokens, n_rows) != (n_new, expected):
        raise RuntimeError(f"asked for {n_new} tokens and {expected} rows, got {n_tokens} and {n_rows}")
    return n_tokens


def _bare(bare: Child, asked_prompts: list[list[int]], n_new: int) -> float:
    answer = bare.ask(prompts=asked_prompts, n_new=n_new)
    n_tokens = sum(len(tokens) for tokens in answer["tokens"])
    if n_tokens != n_new * len(asked_prompts):
        raise RuntimeError(f"the bare engine generated {n_tokens} tokens, not {n_new * len(asked_prompts)}")
    return n_tokens / answer["seconds"]
