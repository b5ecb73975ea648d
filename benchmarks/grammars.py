"""What a grammar costs a token, beside the model's own forward: CPU seconds on the host, of one sequence.

python benchmarks/grammars.py [folder of a checkpoint]: the vocabulary read once, a schema compiled, and masks along texts
that are drawn from random logits.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from probewire.backends.checkpoints import resolve_model
from probewire.backends.model.tokenizer import Tokenizer
from probewire.backends.sampling.adjusted import Adjusted
from probewire.protos.generation.sampling import Grammar, Sampling, TokenBias

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 8},
        "place": {
            "type": "object",
            "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
            "required": ["x", "y"],
        },
    },
    "required": ["name", "tags", "place"],
    "additionalProperties": False,
}
N_TEXTS = 20
MOST = 200


def main(folder: Path) -> None:
    """Print a line a figure."""
    vocab_size = int(json.loads((folder / "config.json").read_text())["vocab_size"])
    tokenizer, rng = Tokenizer(folder, vocab_size), np.random.default_rng(0)
    logits = rng.normal(size=(64, vocab_size)).astype(np.float32)
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    start = time.process_time()
    tokenizer.grammars.matcher(Grammar("regex", "a"))
    vocabulary = time.process_time()
    tokenizer.grammars.matcher(grammar)
    print(f"vocabulary of {vocab_size:,}, once a model: {vocabulary - start:.2f} s")
    print(f"a schema compiled, once: {(time.process_time() - vocabulary) * 1e3:.1f} ms")
    penalties = Sampling(repetition_penalty=1.2, presence_penalty=0.5, logit_bias=(TokenBias(5, 1.0),))
    for name, sampling in (("penalties and a bias", penalties), ("the schema", Sampling(grammar=grammar))):
        steps = [step for _ in range(N_TEXTS) for step in _steps(tokenizer, sampling, logits)]
        told = np.array(steps) * 1e3
        print(
            f"{name}: {np.median(told):.2f} ms a token (median), {np.quantile(told, 0.99):.2f} ms at most in 99 of 100, n = {len(told)}"
        )


def _steps(tokenizer: Tokenizer, sampling: Sampling, logits: np.ndarray[Any, Any]) -> list[float]:
    """CPU seconds of each token of one text."""
    matcher = None if sampling.grammar is None else tokenizer.grammars.matcher(sampling.grammar)
    adjusted, found = Adjusted(sampling, [1, 2, 3], tokenizer.vocab_size, matcher), list[float]()
    for index in range(MOST):
        start = time.process_time()
        token = int(adjusted.of(logits[index % len(logits)], index).argmax())
        adjusted.took(token)
        found.append(time.process_time() - start)
        if token in tokenizer.end_ids:
            break
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else resolve_model("SmolLM2-135M-Instruct").folder)
