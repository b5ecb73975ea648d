"""What an edit of facts scores, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..sae.scoring.intervals import Estimate
from ..sae.unlearning.mcq import Accuracy

__all__ = ["FactScores", "Generated"]


@dataclass(frozen=True, slots=True)
class Generated:
    """Greedy continuations of the generation prompts."""

    mentions_new: Accuracy
    mentions_true: Accuracy
    loss_by_base: Estimate | None
    """Mean −log p a token, by the model without the edit: high for text that it would not write."""
    ngram_entropy: Estimate | None
    """Bits; low for text that repeats itself."""
    texts: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain data, texts included."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}


@dataclass(frozen=True, slots=True)
class FactScores:
    """Shares have Wilson intervals, means bootstrap intervals over prompts, both of 95 %."""

    n_facts: int
    efficacy: Accuracy
    """Greedy decoding of the prompt gives the new target."""
    efficacy_forced: Accuracy
    """p(new) > p(true), teacher-forced."""
    probability: Estimate | None
    """Of the new target."""
    paraphrase: Accuracy
    """Greedy, over paraphrases that the base answers with the true target."""
    paraphrase_forced: Accuracy
    paraphrases_unknown: int
    """Left out, as the base does not know them either."""
    neighbours_kept: Accuracy
    """The likeliest next token is what it was, at neighbours held out."""
    neighbours_forced: Accuracy
    """p(the neighbour's own answer) > p(new)."""
    neighbours_kl: Estimate | None
    """KL(base ‖ edited), nats."""
    reversal: Accuracy
    reversal_before: Accuracy
    hop: Accuracy
    negation: Accuracy
    """Share of negated prompts that go on with the new target, which is wrong."""
    negation_before: Accuracy
    unrelated_kl: Estimate | None
    """KL(base ‖ edited) after general prompts, nats."""
    generated: Generated | None = None

    @property
    def score(self) -> float:
        """Harmonic mean of efficacy, paraphrase and neighbours kept, those that were measured; 0 where one of them is 0."""
        shares = [one.value for one in (self.efficacy, self.paraphrase, self.neighbours_kept) if one.of]
        if not shares or min(shares) == 0:
            return 0.0
        return len(shares) / sum(1 / share for share in shares)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**{one.name: _plain(getattr(self, one.name)) for one in fields(self)}, "score": self.score}

    def __str__(self) -> str:
        lines = [f"{self.n_facts} facts, score {self.score:.3f}"]
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, (Accuracy, Estimate)) and str(value) != "0/0":
                lines.append(f"  {one.name:<19} {value}")
        if self.generated is not None:
            lines.append(
                f"  generated           new {self.generated.mentions_new}, true {self.generated.mentions_true}"
            )
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    return value.to_json() if hasattr(value, "to_json") else value
