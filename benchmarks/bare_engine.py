"""The batching engines as their own authors ship them, with nothing of ours around: what a server can at best equal.

A child process: python bare_engine.py torch|mlx FOLDER. Asked {"prompts": [[id, …], …], "n_new": n}, it generates
greedily for all prompts at once and answers {"seconds", "tokens"}.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from child import answer_lines

from probewire.backends.model.limits import Limits
from probewire.backends.torch.paged_cache import batch_processor

Generate = Callable[[list[list[int]], int], list[list[int]]]


def torch_engine(folder: str) -> Generate:
    """transformers' continuous batching, stepped in a plain loop, in the sizes that our worker gives it."""
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    requests: Any = import_module("transformers.generation.continuous_batching.requests")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    greedy = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    processor = batch_processor(model, greedy, Limits())

    def generate(prompts: list[list[int]], n_new: int) -> list[list[int]]:
        states = [requests.RequestState(f"r{i}", list(p), max_new_tokens=n_new) for i, p in enumerate(prompts)]
        for state in states:
            processor.scheduler.add_waiting_request(state)
        with torch.inference_mode():
            while processor.prepare_next_batch():
                processor._generation_step(model)
                processor.update_batch()
        return [list(state.generated_tokens) for state in states]

    return generate


def mlx_engine(folder: str) -> Generate:
    """mlx-lm's batch generator over mlx-lm's own model, on the CPU."""
    mx: Any = import_module("mlx.core")
    mlx_lm: Any = import_module("mlx_lm")
    generation: Any = import_module("mlx_lm.generate")
    limits = Limits()
    mx.set_default_device(mx.cpu)
    model, _ = mlx_lm.load(folder)
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())

    def generate(prompts: list[list[int]], n_new: int) -> list[list[int]]:
        engine = generation.BatchGenerator(
            model,
            max_tokens=n_new,
            completion_batch_size=limits.n_slots,
            prefill_batch_size=limits.n_slots,
            prefill_step_size=limits.chunk_tokens,
            stream=mx.default_stream(mx.cpu),
        )
        tokens: dict[int, list[int]] = {uid: [] for uid in engine.insert(prompts)}
        left = len(tokens)
        while left:
            _, generated = engine.next()
            for answer in generated:
                tokens[answer.uid].append(int(answer.token))
                left -= answer.finish_reason is not None
        engine.close()
        return list(tokens.values())

    return generate


def main() -> None:
    """Load, say so, and answer."""
    backend, folder = sys.argv[1:]
    generate = {"torch": torch_engine, "mlx": mlx_engine}[backend](folder)

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        tokens = generate(question["prompts"], question["n_new"])
        return {"seconds": time.perf_counter() - start, "tokens": tokens}

    answer_lines(answer)


if __name__ == "__main__":
    main()
