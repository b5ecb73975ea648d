"""What a forgetting run found: a score, why it is zero where it is, and every configuration that was tried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..latents.statistics import Comparison
from .mcq import Accuracy

__all__ = ["REASONS", "Clamp", "ClampResult", "Forgetting", "Reason", "zero_reasons"]

Reason = Literal[
    "untrained SAE",
    "no latent passes the threshold",
    "none fire on the questions",
    "side-effect gate",
    "no answer changes",
]
REASONS: Mapping[Reason, str] = {
    "untrained SAE": "nothing shows that it was ever trained, so its latents mean nothing",
    "no latent passes the threshold": "no latent fires on the forget texts and below the threshold on the retain texts; a higher one lets more pass",
    "none fire on the questions": "the latents chosen fire at no token of the forget questions, so clamping does nothing",
    "side-effect gate": "no clamp that made the model forget left it the retain questions that it knew",
    "no answer changes": "the clamps act, but the model goes on answering every forget question",
}
"""Of a score of zero, and what each says."""


@dataclass(frozen=True, slots=True)
class Clamp:
    """One configuration: where a chosen latent fires, it is set to −multiplier."""

    threshold: float
    """Latents that fire at this share of retain tokens, or more, are dropped."""
    n_latents: int
    """How many were asked for; fewer pass where fewer qualify."""
    multiplier: float
    """In the units of the SAE's latents."""
    latents: tuple[int, ...]
    """Those chosen, most frequent on the forget texts first; of a control, at random."""


@dataclass(frozen=True, slots=True)
class ClampResult:
    """What a configuration did to questions that the model knew."""

    clamp: Clamp
    forget: Accuracy | None
    """Forget questions still answered; None where no latent qualified, so nothing was run."""
    retain: Mapping[str, Accuracy]
    """By set of questions."""
    gate: float

    @property
    def side_effects(self) -> Accuracy | None:
        """Retain questions of all sets pooled."""
        if self.forget is None:
            return None
        sets = self.retain.values()
        return Accuracy(sum(a.right for a in sets), sum(a.of for a in sets))

    @property
    def passes(self) -> bool:
        """Whether it ran, and the model kept at least `gate` of the retain questions."""
        kept = self.side_effects
        return kept is not None and kept.value >= self.gate

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        kept = self.side_effects
        return {
            "retain_threshold": self.clamp.threshold,
            "n_features": self.clamp.n_latents,
            "multiplier": self.clamp.multiplier,
            "latents": list(self.clamp.latents),
            "forget": None if self.forget is None else self.forget.to_json(),
            "retain": {name: accuracy.to_json() for name, accuracy in self.retain.items()},
            "all_side_effects": None if kept is None else kept.to_json(),
            "passes_gate": self.passes,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Forgetting:
    """A forgetting run. Accuracies are of questions that the model answers without any clamp, so they start at 1."""

    results: tuple[ClampResult, ...]
    comparison: Comparison
    """Firing on the forget texts and on the retain texts."""
    fired_on_questions: Mapping[int, int]
    """Latent that was chosen at all → tokens of the forget questions at which it fires."""
    known: Mapping[str, Accuracy]
    """Set of questions → how many the model answers by itself; "forget" is the forget set."""
    trained: bool
    gate: float
    about: Mapping[str, Any]
    """SAE, model, site, how questions are put and scored."""
    controls: tuple[tuple[ClampResult, ...], ...] = ()
    """[draw][configuration]: the same configurations with random latents."""

    @property
    def best(self) -> ClampResult | None:
        """Of the configurations that pass the gate, the one that forgets most; of equals, the mildest."""
        return _best(self.results)

    @property
    def score(self) -> float:
        """1 − the lowest forget accuracy of a configuration that passes the gate; 0 where none does.

        It is the best of several on the very questions that chose it, so it lies above what fresh questions would give;
        no interval here accounts for that.
        """
        return _score(self.results)

    @property
    def control_scores(self) -> tuple[float, ...]:
        """[draw]: the score, as it is defined for the run, of random latents."""
        return tuple(_score(draw) for draw in self.controls)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why the score is 0, the first first; empty where it is not."""
        return zero_reasons(self.results, self.fired_on_questions, trained=self.trained) if self.score == 0 else ()

    @property
    def summary(self) -> str:
        """The score in a sentence; of a zero, with its reason; and the scores of random latents."""
        said = [f"forgetting score {self.score:.3f}"]
        if (best := self.best) is not None and self.score > 0:
            clamp = best.clamp
            said.append(
                f"{len(clamp.latents)} latents at −{clamp.multiplier:g} (threshold {clamp.threshold:g}): forget "
                f"{best.forget}, side effects {best.side_effects}"
            )
        said += [f"{reason}: {REASONS[reason]}" for reason in self.reasons]
        said += [f"random latents: {self._controls_said()}"] if self.controls else []
        return "; ".join(said)

    def _controls_said(self) -> str:
        if all(result.forget is None for draw in self.controls for result in draw):
            return "not run"
        of_all = all(
            len(result.clamp.latents) == len(control.clamp.latents)
            for draw in self.controls
            for result, control in zip(self.results, draw, strict=True)
        )
        scores = ", ".join(f"{score:.3f}" for score in self.control_scores)
        return scores if of_all else f"{scores} (fewer than chosen, as no more fire)"

    def table(self) -> str:
        """Every configuration, a line each, and the summary; accuracies with 95 % Wilson intervals."""
        head = ("threshold", "n", "−m", "forget", "side effects", "gate")
        rows = [head, *(_row(result) for result in self.results)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self.summary])

    def to_json(self) -> dict[str, Any]:
        """Plain data, with SAEBench's field names where there are any."""
        about = dict(self.about)
        return {
            "eval_type_id": "unlearning",
            "eval_config": about.pop("config"),
            "eval_result_metrics": {"unlearning": {"unlearning_score": self.score}},
            "zero_reasons": list(self.reasons),
            "summary": self.summary,
            "trained": self.trained,
            "known_questions": {name: accuracy.to_json() for name, accuracy in self.known.items()},
            "fired_on_questions": {str(latent): n for latent, n in self.fired_on_questions.items()},
            "eval_result_details": [result.to_json() for result in self.results],
            "control_scores": [
                score if any(result.forget is not None for result in draw) else None  # none of them could be run
                for score, draw in zip(self.control_scores, self.controls, strict=True)
            ],
            "control_details": [[result.to_json() for result in draw] for draw in self.controls],
            **about,
        }

    def save(self, path: str | Path) -> Path:
        """Write `to_json` to a file."""
        path = Path(path)
        path.write_text(
            json.dumps(self.to_json(), ensure_ascii=False, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        return path

    def __repr__(self) -> str:
        return f"Forgetting({len(self.results)} configurations; {self.summary})"


def zero_reasons(results: Sequence[ClampResult], fired: Mapping[int, int], *, trained: bool) -> tuple[Reason, ...]:
    """Why no configuration that passes the gate lowers the forget accuracy."""
    ran = [result for result in results if result.forget is not None]
    found: list[Reason] = [] if trained else ["untrained SAE"]
    if not ran:
        found.append("no latent passes the threshold")
    elif not any(fired.get(latent, 0) for result in ran for latent in result.clamp.latents):
        found.append("none fire on the questions")
    elif not any(result.passes for result in ran) or any(r.forget and r.forget.right < r.forget.of for r in ran):
        found.append("side-effect gate")
    else:
        found.append("no answer changes")
    return tuple(found)


def _best(results: Sequence[ClampResult]) -> ClampResult | None:
    return min((result for result in results if result.passes), key=_by_accuracy, default=None)


def _score(results: Sequence[ClampResult]) -> float:
    best = _best(results)
    return 0.0 if best is None or best.forget is None else 1.0 - best.forget.value


def _by_accuracy(result: ClampResult) -> tuple[float, float, int]:
    assert result.forget is not None, "only configurations that ran pass the gate"
    return result.forget.value, result.clamp.multiplier, len(result.clamp.latents)


def _row(result: ClampResult) -> tuple[str, ...]:
    clamp = result.clamp
    n = f"{len(clamp.latents)} of {clamp.n_latents}" if len(clamp.latents) < clamp.n_latents else str(clamp.n_latents)
    first = (f"{clamp.threshold:g}", n, f"{-clamp.multiplier:g}".replace("-", "−"))
    if result.forget is None:
        return (*first, "not run: no latent qualifies", "", "")
    return (*first, str(result.forget), str(result.side_effects), "passes" if result.passes else "fails")
