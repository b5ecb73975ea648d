"""What the benchmarks ask: short prompts that differ, and prompts of an exact length."""

from __future__ import annotations

from probewire.clients import Client

__all__ = ["exact", "short"]

SHORT = (
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "A recipe for a good tomato soup begins with",
    "def fibonacci(n):",
    "The three laws of thermodynamics say that",
    "Dear Sir or Madam, I am writing to",
    "Once upon a time, in a village by the sea, there lived",
    "The main difference between a frog and a toad is",
)

TOPICS = ("rivers", "engines", "violins", "taxes", "glaciers", "novels", "bacteria", "bridges")


def short(client: Client) -> list[list[int]]:
    """Eight short prompts as token ids."""
    return [list(client.tokenize(text).token_ids) for text in SHORT]


def exact(client: Client, n_tokens: int) -> list[list[int]]:
    """Eight different prompts of exactly so many tokens."""
    prompts: list[list[int]] = []
    for topic in TOPICS:
        text = " ".join(
            f"Fact {i} about {topic}: they are the {i * 7 + 3}th in the list." for i in range(n_tokens // 8)
        )
        prompts.append(list(client.tokenize(text).token_ids[:n_tokens]))
    assert all(len(prompt) == n_tokens for prompt in prompts)
    return prompts
