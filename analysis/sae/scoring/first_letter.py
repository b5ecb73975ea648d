"""The first-letter task: words in a spelling prompt, and what a model holds of each at the word itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Input, capture
from ....clients.progress import progress_bar
from ....protos.errors import InvalidArgument
from .splice import batched

__all__ = ["EXAMPLES", "FirstLetterRows", "read_first_letters", "shipped_words"]

EXAMPLES = 10
"""Solved words before the one that is asked (SAEBench's number)."""
QUESTION = " has the first letter:"


@dataclass(frozen=True, slots=True, eq=False)
class FirstLetterRows:
    """What a site holds at each word."""

    words: tuple[str, ...]
    rows: NDArray[np.float32]
    """[word, d_in]."""
    how: str

    @property
    def letters(self) -> tuple[str, ...]:
        """The first letter of each word, in lower case."""
        return tuple(word[0].lower() for word in self.words)


def shipped_words() -> tuple[str, ...]:
    """About 2,000 common English words, written for probewire."""
    found = json.loads(Path(__file__).with_name("first_letter_words.json").read_text(encoding="utf-8"))
    return tuple(word for words in found["words"].values() for word in words.split())


def read_first_letters(
    client: Client,
    site: str,
    *,
    words: Sequence[str] | None = None,
    most_a_letter: int | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
    batch: int = 32,
    progress: bool = True,
    model: str = "",
) -> FirstLetterRows:
    """Read a site at each word of "… {word} has the first letter:", after `examples` solved ones drawn with the seed.

    Words of several tokens are left out (`how` says how many): their letter may lie in another token. `most_a_letter`
    keeps so many words a letter, drawn with the seed. Raises InvalidArgument where fewer than two words are left.
    """
    rng = np.random.default_rng(seed)
    pool = list(dict.fromkeys(shipped_words() if words is None else words))
    wrong = [word for word in pool if not (word.isascii() and word.isalpha())]
    if wrong:
        raise InvalidArgument(f"words are made of the letters a … z, not {', '.join(map(repr, wrong[:5]))}")
    if most_a_letter is not None:
        pool = _fewer(pool, most_a_letter, rng)
    whole = [word for word in pool if client.tokenize(f" {word}", model=model).tokens[-1].strip() == word]
    if len(whole) < 2:
        raise InvalidArgument(f"{len(whole)} of {len(pool)} words are one token for this model; give other words")
    start = client.tokenize(whole[0], model=model).tokens
    asked = len(client.tokenize(f"{whole[0]}{QUESTION}", model=model).tokens) - len(start)
    inputs = [Input(text=_prompt(word, pool, examples, rng), name=word) for word in whole]
    kept: list[str] = []
    rows: list[NDArray[np.float32]] = []
    with progress_bar("first letters", "plans", show=progress) as bar:
        for some in batched(inputs, batch):
            run = client.run(some, capture=[capture(site, positions=-asked - 1)], model=model)
            for item in some:
                tokens = run.inputs[item.name].prompt_tokens
                if tokens[-asked - 1].strip() == item.name and "".join(tokens[-asked:]) == QUESTION:
                    kept.append(item.name)
                    rows.append(run.inputs[item.name][site].astype(np.float32).reshape(-1))
            bar(len(kept), len(inputs))
    if len(kept) < 2:
        raise InvalidArgument(f"{len(kept)} of {len(pool)} words are one token in the prompt; give other words")
    how = (
        f"{site} at the word in “{{word}}{QUESTION}” after {examples} solved examples; {len(kept)} words of one token "
        f"({len(pool) - len(kept)} of several left out), seed {seed}"
    )
    return FirstLetterRows(tuple(kept), np.stack(rows), how)


def _prompt(word: str, pool: Sequence[str], examples: int, rng: np.random.Generator) -> str:
    """Solved examples, none of them the word itself, then the question."""
    drawn = [str(other) for other in rng.choice(np.array(pool), min(examples + 1, len(pool)), replace=False)]
    solved = [f" {other}{QUESTION} {other[0].upper()}" for other in drawn if other != word][:examples]
    return "\n".join(["", *solved, f" {word}{QUESTION}"])


def _fewer(pool: Sequence[str], most: int, rng: np.random.Generator) -> list[str]:
    if most < 1:
        raise InvalidArgument(f"most_a_letter must be 1 or more, got {most}")
    kept: list[str] = []
    for letter in sorted({word[0].lower() for word in pool}):
        own = [word for word in pool if word[0].lower() == letter]
        kept += [own[i] for i in sorted(rng.permutation(len(own))[:most].tolist())]
    return kept
