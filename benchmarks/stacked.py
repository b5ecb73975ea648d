"""What it brings that sequences share forwards through the library's own caches (PyTorch): tokens a second of models that
transformers' continuous batching refuses, in batches and one sequence after another, in turns within one run. Random weights,
of sizes at which a forward is more than Python; seconds are those of the processor, on one thread, so that other work on the
cores counts little.

    python benchmarks/stacked.py [--rounds N] [--new N] [--plain] [MODEL …]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ratios import interleaved

from probewire.backends import load_backend
from probewire.backends.batch_engine import BatchEngine
from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.plan import bind
from probewire.backends.hooks.sequence import Sequence
from probewire.backends.model.limits import Limits
from probewire.protos.model import Sampling
from probewire.protos.spec import Capture, Hook, Plan

torch: Any = import_module("torch")  # in part not annotated, as transformers
transformers: Any = import_module("transformers")

AT_ONCE = (2, 8, 16)
LIMITS = Limits(n_slots=16, context_tokens=512, cache_tokens=8192)
PROMPTS = (24, 40)
"""Their lengths are between these."""
PLANS = {"": Plan(), ", resid_post.* captured": Plan((Hook("resid_post.*", capture=Capture()),))}
_ATTENTION = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 8000,
    "max_position_embeddings": 1024,
}
_EXPERTS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "n_group": 1,
    "topk_group": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "mamba2": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_heads": 16,
        "head_dim": 64,
        "n_groups": 1,
        "vocab_size": 8000,
    },
    "qwen3_5_text": {
        **_ATTENTION,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_num_value_heads": 8,
        "linear_num_key_heads": 8,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    "deepseek_v3": {
        **_ATTENTION,
        **_EXPERTS,
        "num_key_value_heads": 8,
        "q_lora_rank": 256,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "first_k_dense_replace": 2,
    },
}


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--plain", action="store_true", help="without captures")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; none: all")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    print("| model, sequences at once | in batches, tokens / CPU s | one after another | batches ÷ alone |")
    print("| --- | ---: | ---: | ---: |")
    for kind in asked.models or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            _write(kind, Path(folder))
            backend = load_backend("torch", Path(folder), model_id=kind, limits=LIMITS, dtype="float32", device="cpu")
        backend.use_threads(1)
        assert not backend.info.batching, backend.info.batching
        for told, plan in list(PLANS.items())[: 1 if asked.plain else None]:
            for n in AT_ONCE:
                timed = {
                    name: partial(_rate, backend, n, asked.new, plan, batching=name == "batches")
                    for name in ("batches", "alone")
                }
                samples = interleaved(timed, rounds=asked.rounds, any_order=True)
                ratios = [a / b for a, b in zip(samples["batches"], samples["alone"], strict=True)]
                spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
                print(
                    f"| {kind}, {n}{told} | {median(samples['batches']):.0f} | {median(samples['alone']):.0f} | "
                    f"{median(ratios):.2f} ({spread}) |",
                    flush=True,
                )
        backend.close()


def _write(kind: str, folder: Path) -> None:
    config = transformers.AutoConfig.for_model(kind, bos_token_id=1, eos_token_id=2, pad_token_id=2, **MODELS[kind])
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def _rate(backend: Backend, n: int, n_new: int, plan: Plan, *, batching: bool) -> float:
    """New tokens a second of n sequences that begin together, their prompts not counted: these are read alike."""
    engine, rng = backend.engine, np.random.default_rng(0)
    assert isinstance(engine, BatchEngine)
    engine.batching = batching
    sequences: list[Sequence] = []
    for i in range(n):
        length = int(rng.integers(*PROMPTS))
        tokens = rng.integers(3, 1000, size=length).tolist()
        bound = bind(
            plan,
            backend,
            mode="generate",
            input_name="x",
            tokens=tokens,
            prompt_length=length,
            n_rows=length + n_new - 1,
        )
        backend.bind(bound)
        sequences.append(Sequence(f"s{i}", tokens, length, bound, Sampling(max_new_tokens=n_new)))
    for sequence in sequences:
        assert engine.admit(sequence)
    while any(not sequence.n_generated for sequence in sequences):
        _step(engine, n_new)
    begun = sum(sequence.n_generated for sequence in sequences)
    start_s = time.process_time()
    while engine.active:
        _step(engine, n_new)
    return (n * n_new - begun) / (time.process_time() - start_s)


def _step(engine: BatchEngine, n_new: int) -> None:
    for result in engine.step():
        assert result.error is None, result.error
        if result.sequence.n_generated >= n_new:
            engine.remove(result.sequence)


if __name__ == "__main__":
    main()
