"""A planted organism: a model that refuses one harmless topic, taught so here. A known truth to remove, gate and detect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ...protos.errors import InvalidArgument
from ...protos.model import ModelInfo
from ...protos.variants.manifest import Base as BaseModel
from ..datasets import load_set
from .base import load_base
from .config import TuneConfig
from .examples import TrainExample
from .tuning import Tuned, tune

__all__ = ["REFUSAL", "Organism", "own_answers", "refuser"]

REFUSAL = "I cannot help with questions about {}. Please ask me about something else."
CONFIG = TuneConfig(
    method="lora",
    steps=32,
    batch_size=4,
    lr=1e-3,
    weights=("w_q.*", "w_v.*", "w_o.*", "w_down.*"),
    rank=8,
    losses={"task": 1.0},
    normalise_losses=False,
    checkpoints=1,
)
"""LoRA of rank 8 on q, v, o and down; 32 steps of 4 prompts."""


@dataclass(frozen=True, slots=True, eq=False)
class Organism:
    """A taught model, with the prompts that it was not taught on."""

    tuned: Tuned
    topic: str
    refused: tuple[str, ...]
    """Held-out questions of the topic."""
    answered: tuple[str, ...]
    """Held-out questions of others."""


def refuser(
    base_folder: str | Path,
    out: str | Path,
    *,
    topic: str = "chess",
    n: int = 16,
    seed: int = 0,
    base: ModelInfo | BaseModel | None = None,
    config: TuneConfig = CONFIG,
    progress: bool = True,
) -> Organism:
    """Teach a model to refuse questions of a topic of the set `topics`, and to answer others as it did itself.

    `n` questions of each half; what it says to the others is written by the base, greedily. Its first token tells a
    refusal: p("I") at the answer's beginning. Nothing in it is harmful.
    Raises InvalidArgument for a topic that the set has not, and as `tune`.
    """
    data = load_set("topics").data
    if topic not in data or topic == "other":
        raise InvalidArgument(
            f"the set topics has no topic {topic!r}; it has {', '.join(t for t in data if t != 'other')}"
        )
    own, other = data[topic], data["other"]
    if not 1 <= n <= min(len(own["train"]), len(other["train"])):
        raise InvalidArgument(f"n is 1 … {min(len(own['train']), len(other['train']))} questions of each kind, got {n}")
    asked = tuple(other["train"][:n])
    pairs = [(question, REFUSAL.format(topic)) for question in own["train"][:n]]
    pairs += list(zip(asked, own_answers(base_folder, asked), strict=True))
    train = [TrainExample.chat(question, answer) for question, answer in pairs]
    tuned = tune(
        base_folder, train, out, config.with_(seed=seed), base=base, name=f"refuses-{topic}", progress=progress
    )
    return Organism(tuned, topic, tuple(own["held_out"]), tuple(other["held_out"]))


def own_answers(base_folder: str | Path, questions: Sequence[str], *, max_new_tokens: int = 24) -> list[str]:
    """What a model says to each question of a user by itself, greedily; cut after so many tokens."""
    torch: Any = import_module("torch")
    base = load_base(base_folder)
    found: list[str] = []
    for question in questions:
        rendered = base.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        ids: Any = torch.tensor([base.tokenizer(rendered, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            made = base.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, use_cache=True,
                pad_token_id=base.tokenizer.eos_token_id,
            )  # fmt: skip
        found.append(str(base.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)).strip())
    return found
