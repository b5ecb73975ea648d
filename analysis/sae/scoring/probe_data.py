"""Labelled texts for probing: sets that come with the package, and your own.

The package's own are made of templates and words, by a seed. No word that tells a class occurs in both training and
held-out texts, so that a probe has to find the concept, not the word.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import numpy as np

from ....protos.errors import InvalidArgument

__all__ = ["PAIRS", "SETS", "LabelledTexts", "biographies", "bundled", "from_texts"]

Split = Literal["train", "test"]
Words = Mapping[str, Sequence[str]]
"""Slot → what may fill it."""
MOST_TRIES = 1000
"""Draws in a row that bring no new text, before the words are said to have run out."""


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts of two or more classes, for training and held out."""

    name: str
    train: Mapping[str, tuple[str, ...]]
    """Class → texts."""
    test: Mapping[str, tuple[str, ...]]
    source: str
    """Where they come from, with the seed that drew them."""

    def __post_init__(self) -> None:
        if len(self.train) < 2 or list(self.train) != list(self.test):
            raise InvalidArgument(
                f"{self.name!r} needs two classes or more, the same for training and testing; it has "
                f"{list(self.train)} and {list(self.test)}"
            )
        few = [name for texts in (self.train, self.test) for name, found in texts.items() if len(found) < 2]
        if few:
            raise InvalidArgument(f"{self.name!r} has fewer than 2 texts of {', '.join(dict.fromkeys(few))}")

    @property
    def classes(self) -> tuple[str, ...]:
        """In order."""
        return tuple(self.train)


@functools.cache
def _file() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("probe_texts.json").read_text(encoding="utf-8"))


SETS: tuple[str, ...] = tuple(_file()["sets"])
"""Names of the sets that come with the package."""
PAIRS: tuple[tuple[str, str], ...] = tuple((first, second) for first, second in _file()["biographies"]["pairs"])
"""Professions whose biographies are told apart beside gender."""


def bundled(name: str, *, n_train: int = 128, n_test: int = 64, seed: int = 0) -> LabelledTexts:
    """One of `SETS`, with so many different texts a class. Raises InvalidArgument for another name, or too many texts."""
    if name not in SETS:
        raise InvalidArgument(f"no set {name!r}; there are: {', '.join(SETS)}")
    found = _file()["sets"][name]
    texts: dict[Split, dict[str, tuple[str, ...]]] = {"train": {}, "test": {}}
    for number, (label, own) in enumerate(found["classes"].items()):
        for split, n in _sizes(n_train, n_test).items():
            words = _half({**found["shared"], **own}, split)
            rng = np.random.default_rng([seed, SETS.index(name), number, int(split == "test")])
            texts[split][label] = _texts(
                found["templates"], words, n, rng, found["sentences"], found.get("separator", " "), f"{name}: {label}"
            )
    return LabelledTexts(name, texts["train"], texts["test"], f"probewire's {name} texts, seed {seed}")


def biographies(
    pair: tuple[str, str], *, n_train: int = 128, n_test: int = 64, seed: int = 0
) -> Mapping[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
    """(profession, gender) → (training texts, held-out texts), for two professions and both genders.

    Raises InvalidArgument for professions that are not among those of `PAIRS`.
    """
    data = _file()["biographies"]
    unknown = [name for name in pair if name not in data["professions"]]
    if unknown:
        raise InvalidArgument(f"no biographies of {', '.join(unknown)}; there are: {', '.join(data['professions'])}")
    found: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for profession in pair:
        for gender, own in data["genders"].items():
            splits: list[tuple[str, ...]] = []
            for split, n in _sizes(n_train, n_test).items():
                words = _half({**data["shared"], "name": own["name"], "work": data["professions"][profession]}, split)
                forms = {key: own[key] for key in ("pronoun", "possessive")}
                words |= {key: [form] for key, form in forms.items()}
                words |= {key.capitalize(): [form.capitalize()] for key, form in forms.items()}
                key = list(data["professions"]).index(profession)
                rng = np.random.default_rng([seed, key, int(gender == "male"), int(split == "test")])
                splits.append(_texts(data["templates"], words, n, rng, 1, " ", f"{profession}, {gender}"))
            found[profession, gender] = (splits[0], splits[1])
    return found


def from_texts(
    name: str, texts: Sequence[str], labels: Sequence[str], *, held_out: float = 0.25, seed: int = 0
) -> LabelledTexts:
    """Your own texts, a share of each class held out at random. Raises InvalidArgument when labels do not pair."""
    if len(texts) != len(labels):
        raise InvalidArgument(f"{len(texts)} texts and {len(labels)} labels do not pair")
    if not 0 < held_out < 1:
        raise InvalidArgument(f"held_out is a share between 0 and 1, got {held_out}")
    rng = np.random.default_rng(seed)
    train: dict[str, tuple[str, ...]] = {}
    test: dict[str, tuple[str, ...]] = {}
    for label in sorted(set(labels)):
        own = [text for text, other in zip(texts, labels, strict=True) if other == label]
        order = [own[int(i)] for i in rng.permutation(len(own))]
        cut = round(len(own) * held_out)
        train[label], test[label] = tuple(order[cut:]), tuple(order[:cut])
    return LabelledTexts(name, train, test, f"{len(texts)} texts of yours, {held_out:.0%} held out, seed {seed}")


def _sizes(n_train: int, n_test: int) -> dict[Split, int]:
    return {"train": n_train, "test": n_test}


def _half(words: Words, split: Split) -> dict[str, Sequence[str]]:
    """Words at even places for training, at odd ones for testing."""
    return {slot: found[0::2] if split == "train" else found[1::2] for slot, found in words.items()}


def _texts(
    templates: Sequence[str], words: Words, n: int, rng: np.random.Generator, sentences: int, separator: str, what: str
) -> tuple[str, ...]:
    """`n` different texts of so many sentences each."""
    found: dict[str, None] = {}
    tries = 0
    while len(found) < n:
        before = len(found)
        found[separator.join(_sentence(templates, words, rng) for _ in range(sentences))] = None
        tries = tries + 1 if len(found) == before else 0
        if tries == MOST_TRIES:
            raise InvalidArgument(f"{what} has words for about {len(found)} different texts, not {n}")
    return tuple(found)


def _sentence(templates: Sequence[str], words: Words, rng: np.random.Generator) -> str:
    """One template, filled. A word may itself have slots ("def get_{name}")."""
    text = templates[int(rng.integers(len(templates)))]
    while slots := _slots(text):
        filling = {slot: words[slot][int(rng.integers(len(words[slot])))] for slot in slots}
        if not any("{" in word for word in filling.values()):
            return _capital(text.format(**filling), text)
        text = "".join(
            literal + ("" if slot is None else filling[slot]) for literal, slot, _, _ in Formatter().parse(text)
        )
    return text


def _slots(text: str) -> list[str]:
    return list(dict.fromkeys(slot for _, slot, _, _ in Formatter().parse(text) if slot is not None))


def _capital(sentence: str, template: str) -> str:
    """A sentence that begins with a slot begins with a capital, unless the template is a line of code."""
    return sentence[:1].upper() + sentence[1:] if template.startswith("{") and template.endswith(".") else sentence
