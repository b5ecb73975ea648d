"""What it costs that sequences go one after another: tokens a second of the default model through that engine and through the
batching one, at 1, 4 and 16 sequences at once, in turns within one run. Seconds are those of the processor, on one thread, so
that other work on the cores counts little.

    python benchmarks/alone.py [--rounds N] [--new N]
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from statistics import median

import numpy as np
from ratios import interleaved
from servers import model_folder

from probewire.backends import load_backend
from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.plan import bind
from probewire.backends.hooks.sequence import Sequence
from probewire.backends.model.limits import Limits
from probewire.protos.model import Sampling
from probewire.protos.spec import Capture, Hook, Plan

AT_ONCE = (1, 4, 16)
PROMPT_TOKENS = 24
LIMITS = Limits(n_slots=16, context_tokens=512, cache_tokens=4096)
PLANS = {"": Plan(), ", resid_post.* captured": Plan((Hook("resid_post.*", capture=Capture()),))}


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--plain", action="store_true", help="without captures")
    asked = parser.parse_args()
    batching, alone = (_load(asked.dtype) for _ in range(2))
    alone.use_threads(1)
    assert alone.generate_alone("it is measured")
    print("| sequences at once | batching, tokens / CPU s | one after another | ratio | of one sequence alone |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for told, plan in list(PLANS.items())[: 1 if asked.plain else None]:
        one = 0.0
        for n in AT_ONCE:
            timed = {
                name: partial(_rate, backend, n, asked.new, plan)
                for name, backend in (("batching", batching), ("alone", alone))
            }
            samples = interleaved(timed, rounds=asked.rounds, any_order=True)
            ratios = [a / b for a, b in zip(samples["alone"], samples["batching"], strict=True)]
            b, a = median(samples["batching"]), median(samples["alone"])
            one = one or a
            spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
            print(f"| {n}{told} | {b:.1f} | {a:.1f} | {median(ratios):.2f} ({spread}) | {a / one:.2f} |", flush=True)


def _load(dtype: str) -> Backend:
    return load_backend("torch", model_folder(), model_id="default", limits=LIMITS, dtype=dtype, check=False)


def _rate(backend: Backend, n: int, n_new: int, plan: Plan) -> float:
    """New tokens a second of n sequences that begin together, their prompts included."""
    engine, rng = backend.engine, np.random.default_rng(0)
    assert engine is not None
    sequences: list[Sequence] = []
    for i in range(n):
        tokens = rng.integers(0, 1000, size=PROMPT_TOKENS).tolist()
        rows = PROMPT_TOKENS + n_new - 1
        bound = bind(
            plan, backend, mode="generate", input_name="x", tokens=tokens, prompt_length=PROMPT_TOKENS, n_rows=rows
        )
        backend.bind(bound)
        sequences.append(Sequence(f"s{i}", tokens, PROMPT_TOKENS, bound, Sampling(max_new_tokens=n_new)))
    start_s = time.process_time()
    for sequence in sequences:
        assert engine.admit(sequence)
    while engine.active:
        for result in engine.step():
            assert result.error is None, result.error
            if result.sequence.n_generated >= n_new:
                engine.remove(result.sequence)
    return n * n_new / (time.process_time() - start_s)


if __name__ == "__main__":
    main()
