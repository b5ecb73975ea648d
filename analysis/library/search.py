"""Finding circuits: words by tf-idf, everything else by filters, and the reason of each hit."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...protos.errors import FailedPrecondition
from ..circuits import Circuit, Unit

__all__ = ["Hit", "Query", "ranked"]

REASONS = 4
_WORD = r"(?u)[^\W_]+"


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for; what is left empty does not count."""

    text: str = ""
    category: str = ""
    """This one and those below it."""
    tags: tuple[str, ...] = ()
    model_hash: str = ""
    family: str = ""
    task: str = ""
    min_level: int = 0
    contains: Unit | None = None
    overlaps: Circuit | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A circuit that was found, and why."""

    circuit: Circuit
    score: float
    """Cosine of tf-idf times Jaccard of units; 1 where neither text nor a circuit was asked for."""
    reasons: tuple[str, ...]

    def __repr__(self) -> str:
        card = self.circuit.card
        return f"Hit({card.name} {card.version}, {self.score:.2f}: {'; '.join(self.reasons) or 'no filter'})"


def ranked(circuits: Sequence[Circuit], query: Query) -> list[Hit]:
    """Those that pass every filter, best first; with `text` or `overlaps` only those that have any of it."""
    kept = [(one, reasons) for one in circuits if (reasons := _passes(one, query)) is not None]
    words = _words([one for one, _ in kept], query.text) if query.text and kept else [(1.0, "")] * len(kept)
    hits: list[Hit] = []
    for (circuit, reasons), (score, found) in zip(kept, words, strict=True):
        shared = 1.0 if query.overlaps is None else _jaccard(circuit, query.overlaps)
        told = [*([found] if found else []), *reasons]
        if query.overlaps is not None:
            told.append(f"{100 * shared:.0f} % of units in common")
        if score * shared > 0:
            hits.append(Hit(circuit, score * shared, tuple(told)))
    return sorted(hits, key=lambda hit: (-hit.score, hit.circuit.card.name))


def _passes(circuit: Circuit, query: Query) -> list[str] | None:
    """The reasons, or None where a filter does not let it through."""
    card, origin = circuit.card, circuit.origin
    tests = [
        (query.category, (card.category + "/").startswith(query.category + "/"), f"category {card.category}"),
        (query.tags, set(query.tags) <= set(card.tags), f"tags {', '.join(query.tags)}"),
        (query.model_hash, origin.model_hash == query.model_hash, "of this model"),
        (query.family, query.family.lower() in origin.model.lower(), f"model {origin.model}"),
        (query.task, origin.task == query.task, f"task {origin.task}"),
        (query.min_level, card.level >= query.min_level, f"level {card.level}"),
        (query.contains, query.contains in circuit.units, f"holds {query.contains.name if query.contains else ''}"),
    ]
    asked = [(passed, reason) for given, passed, reason in tests if given]
    return [reason for _, reason in asked] if all(passed for passed, _ in asked) else None


def _words(circuits: Sequence[Circuit], text: str) -> list[tuple[float, str]]:
    """(cosine, the words that made it) of each circuit."""
    try:
        module: Any = importlib.import_module("sklearn.feature_extraction.text")
    except ModuleNotFoundError:
        raise FailedPrecondition(
            "searching for words needs scikit-learn, which is not installed; pip install 'probewire[analysis]', or search "
            "by category, tags, model or units"
        ) from None
    vectorizer = module.TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=_WORD)
    rows = vectorizer.fit_transform([_document(one) for one in circuits])
    asked = vectorizer.transform([text])
    names = vectorizer.get_feature_names_out()
    found: list[tuple[float, str]] = []
    for row in rows:
        shares = row.multiply(asked).toarray()[0]
        best = [int(i) for i in shares.argsort()[::-1][:REASONS] if shares[i] > 0]
        found.append((float(shares.sum()), "words " + ", ".join(str(names[i]) for i in best) if best else ""))
    return found


def _document(circuit: Circuit) -> str:
    card = circuit.card
    claims = [f"{claim.role} {claim.measure}" for claim in card.claims]
    # A name counts twice, and its parts are words too.
    return "\n".join([card.name, card.name, card.category, card.description, *card.tags, *claims, circuit.origin.task])


def _jaccard(a: Circuit, b: Circuit) -> float:
    ours, theirs = set(a.units), set(b.units)
    return len(ours & theirs) / len(ours | theirs)
