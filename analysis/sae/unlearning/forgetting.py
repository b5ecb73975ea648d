"""Forgetting by clamping latents: the unlearning protocol of SAEBench (Karvonen et al. 2025; Farrell et al. 2024) for any

model, SAE, pair of corpora and multiple-choice questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....clients import Client, Hook, capture, edit_latents
from ....clients.progress import progress_bar
from ....protos.errors import FailedPrecondition, InvalidArgument
from ....protos.saes import SaeInfo
from ..data.batches import require_seed
from ..data.corpus import Texts
from ..latents.statistics import Comparison, compare, count_latents
from ..latents.stream import CONTEXT
from ..model.loaded import LoadedSae, require_trained
from ..model.on_server import opened
from .controls import random_clamps
from .mcq import INPUTS_A_REQUEST, Accuracy, Form, Length, answer, known_questions, scored_texts
from .questions import Question, Questions, questions_of
from .results import Clamp, ClampResult, Forgetting

__all__ = ["GATE", "MULTIPLIERS", "N_LATENTS", "THRESHOLDS", "choose_latents", "clamp_hook", "forgetting"]

THRESHOLDS = (0.001, 0.01)
N_LATENTS = (10, 20)
MULTIPLIERS = (25.0, 50.0, 100.0, 200.0)
GATE = 0.99
"""Share of the retain questions that must still be answered."""
FORGET = "forget"


def forgetting(
    client: Client,
    sae: str | Path,
    *,
    forget_texts: Texts,
    retain_texts: Texts,
    forget_questions: Questions,
    retain_questions: Mapping[str, Questions],
    thresholds: Sequence[float] = THRESHOLDS,
    n_latents: Sequence[int] = N_LATENTS,
    multipliers: Sequence[float] = MULTIPLIERS,
    gate: float = GATE,
    form: Form = "text",
    length: Length = "byte",
    context: int = CONTEXT,
    max_tokens: int | None = None,
    control_draws: int = 3,
    seed: int = 0,
    allow_untrained: bool = False,
    folder: str | Path | None = None,
    site: str = "",
    model: str = "",
    progress: bool = True,
) -> Forgetting:
    """How far clamping latents makes the model forget, without costing it anything else.

    Texts and questions are lists, or paths of files (`corpus.of`, `mcq.load_questions`). `retain_questions`: by name.

    1. Firing frequencies on `forget_texts` and `retain_texts` (at most `max_tokens` of each; a window's first token is
       left out). 2. Latents at or above `thresholds` on the retain texts are dropped; of the rest, the `n_latents` most
       frequent on the forget texts. 3. Where such a latent fires, it is set to −`multipliers` (the first token is left
       alone, the SAE's error kept). 4. Of the questions that the model answers without a clamp: how many it still
       answers. Score: 1 − the lowest forget accuracy of a configuration that keeps `gate` of the retain questions
       (all sets pooled), else 0, and then `reasons` says why. `form` and `length`: how questions are put and choices
       scored (`mcq.answer`). `sae`, `folder`, `site`: as of `dashboard`.

    As the score is the best of many, it needs a control: `control_draws` times (each as long as the run itself; 0
    leaves it out) every configuration is run with as many latents at random, drawn with `seed` from the others that
    fire on the forget texts: first from those that pass the threshold too, then from the rest.

    Raises FailedPrecondition for an SAE that was never trained (without `allow_untrained`), and where the model by
    itself answers no forget question, or no retain question, as then nothing can be measured.
    """
    _check(thresholds, n_latents, multipliers, gate, retain_questions, control_draws)
    require_seed(seed)
    with opened(client, sae, folder=folder, site=site, model=model) as (info, loaded):
        if not allow_untrained:
            require_trained(loaded)
        known, shares = _known(client, forget_questions, retain_questions, form, length, info.model, progress=progress)
        frequencies = _frequencies(client, info, forget_texts, retain_texts, context, max_tokens, progress=progress)
        clamps = [
            Clamp(threshold, n, multiplier, choose_latents(frequencies, threshold, n))
            for threshold in thresholds
            for n in n_latents
            for multiplier in multipliers
        ]
        randoms = [random_clamps(clamps, frequencies, seed, draw) for draw in range(control_draws)]
        run = _Answers(client, info, known, form, length)
        results, *controls = run.results([clamps, *randoms], gate, progress=progress)
        chosen = sorted({latent for clamp in clamps for latent in clamp.latents})
        fired = _fired(client, info, chosen, known[FORGET], form)
        config = {
            "dataset_names": [FORGET, *retain_questions],
            "intervention_method": "clamp_feature_activation",
            "retain_thresholds": list(thresholds),
            "n_features_list": list(n_latents),
            "multipliers": list(multipliers),
            "seq_len": context,
            "side_effect_gate": gate,
            "question_form": form,
            "length_normalisation": length if form == "text" else "none",
            "control_draws": control_draws,
            "random_seed": seed,
        }
        about = {"config": config, **_about(client, info, loaded, frequencies)}
        return Forgetting(results, frequencies, fired, shares, loaded.trained, gate, about, tuple(controls))


def choose_latents(frequencies: Comparison, threshold: float, n: int) -> tuple[int, ...]:
    """The `n` latents that fire most on the first corpus, of those that fire below `threshold` on the second."""
    forget, retain = frequencies.first.rate, frequencies.second.rate
    candidates = np.flatnonzero((retain < threshold) & (forget > 0))
    order = np.lexsort((candidates, -forget[candidates]))
    return tuple(candidates[order][:n].tolist())


def clamp_hook(info: SaeInfo, latents: Sequence[int], multiplier: float) -> Hook:
    """Where a latent fires (f > 0) it becomes −multiplier, at every token but the first; the SAE's error is kept."""
    changes = {latent: {"set": -float(multiplier), "active": True} for latent in latents}
    return edit_latents(info.site, info.name, changes, spans=[(1, None)])


class _Answers:
    """Questions answered under clamps; what was run once is not run again."""

    def __init__(
        self,
        client: Client,
        info: SaeInfo,
        known: Mapping[str, Sequence[Question]],
        form: Form,
        length: Length,
    ) -> None:
        self._client, self._info, self._known = client, info, known
        self._form: Form = form
        self._length: Length = length
        self._done: dict[tuple[tuple[int, ...], float], dict[str, Accuracy]] = {}

    def results(
        self, plans: Sequence[Sequence[Clamp]], gate: float, *, progress: bool
    ) -> list[tuple[ClampResult, ...]]:
        """Of each plan, what each of its clamps does."""
        total = sum(len(clamps) for clamps in plans)
        found: list[tuple[ClampResult, ...]] = []
        with progress_bar("clamping", "plans", show=progress) as bar:
            for clamps in plans:
                before, own = sum(map(len, found)), list[ClampResult]()
                for done, clamp in enumerate(clamps, before):
                    bar(done, total)
                    own.append(self.result(clamp, gate))
                found.append(tuple(own))
        return found

    def result(self, clamp: Clamp, gate: float) -> ClampResult:
        if not clamp.latents:
            return ClampResult(clamp, None, {}, gate)
        key = (tuple(sorted(clamp.latents)), clamp.multiplier)
        if key not in self._done:
            hook = clamp_hook(self._info, clamp.latents, clamp.multiplier)
            self._done[key] = {name: self._accuracy(asked, hook) for name, asked in self._known.items()}
        found = dict(self._done[key])
        return ClampResult(clamp, found.pop(FORGET), found, gate)

    def _accuracy(self, questions: Sequence[Question], hook: Hook) -> Accuracy:
        scores = answer(
            self._client,
            questions,
            hooks=[hook],
            form=self._form,
            length=self._length,
            progress=False,
            model=self._info.model,
        )
        right = sum(int(row.argmax()) == question.answer for row, question in zip(scores, questions, strict=True))
        return Accuracy(right, len(questions))


def _check(
    thresholds: Sequence[float],
    n_latents: Sequence[int],
    multipliers: Sequence[float],
    gate: float,
    retain_questions: Mapping[str, Questions],
    control_draws: int,
) -> None:
    checks = {
        f"thresholds must be above 0, up to 1; got {list(thresholds)}": [0 < x <= 1 for x in thresholds],
        f"n_latents must be 1 or more; got {list(n_latents)}": [x >= 1 for x in n_latents],
        f"multipliers must be finite, 0 or more; got {list(multipliers)}": [0 <= x < float("inf") for x in multipliers],
    }
    for said, fit in checks.items():
        if not fit or not all(fit):
            raise InvalidArgument(f"{said} (at least one)")
    if not 0 < gate <= 1:
        raise InvalidArgument(f"gate is a share above 0, up to 1; got {gate}")
    if type(control_draws) is not int or control_draws < 0:
        raise InvalidArgument(f"control_draws is a whole number of 0 or more; got {control_draws!r}")
    if FORGET in retain_questions:
        raise InvalidArgument(f"a set of retain questions is called {FORGET!r}; that is the name of the forget set")


def _known(
    client: Client,
    forget: Questions,
    retain: Mapping[str, Questions],
    form: Form,
    length: Length,
    model: str,
    *,
    progress: bool,
) -> tuple[dict[str, list[Question]], dict[str, Accuracy]]:
    """By set: the questions that the model answers, and how many of how many."""
    asked = {name: questions_of(source) for name, source in {FORGET: forget, **retain}.items()}
    known = {
        name: known_questions(client, questions, form=form, length=length, progress=progress, model=model)
        for name, questions in asked.items()
    }
    shares = {name: Accuracy(len(known[name]), len(questions)) for name, questions in asked.items()}
    if not known[FORGET]:
        raise FailedPrecondition(
            f"the model answers none of the {len(asked[FORGET])} forget questions by itself, so there is nothing to forget; give "
            "questions that it knows, or another form or length"
        )
    if not any(known[name] for name in retain):
        raise FailedPrecondition(
            f"the model answers none of the {sum(len(asked[name]) for name in retain)} retain questions by itself, so side effects "
            "cannot be measured; give questions that it knows"
        )
    return known, shares


def _frequencies(
    client: Client,
    info: SaeInfo,
    forget: Texts,
    retain: Texts,
    context: int,
    max_tokens: int | None,
    *,
    progress: bool,
) -> Comparison:
    sides = [
        count_latents(client, info, texts, context=context, max_tokens=max_tokens, progress=progress)
        for texts in (forget, retain)
    ]
    return compare(*sides, names=(FORGET, "retain"))


def _fired(
    client: Client, info: SaeInfo, latents: Sequence[int], questions: Sequence[Question], form: Form
) -> dict[int, int]:
    """Latent → tokens of the questions, as they are scored and without a clamp, at which it fires; first tokens aside."""
    if not latents:
        return {}
    texts = [text for question in questions for text in scored_texts(question, form)]
    fired = np.zeros(len(latents), dtype=np.int64)
    read = capture(info.site, latents=info.name, latent_ids=list(latents), spans=[(1, None)])
    for start in range(0, len(texts), INPUTS_A_REQUEST):
        some = {str(index): text for index, text in enumerate(texts[start : start + INPUTS_A_REQUEST])}
        run = client.run(some, capture=[read], model=info.model)
        fired += sum((run.inputs[name][info.site] > 0).sum(axis=0) for name in some)
    return dict(zip(latents, fired.tolist(), strict=True))


def _about(client: Client, info: SaeInfo, loaded: LoadedSae, frequencies: Comparison) -> dict[str, Any]:
    described = client.describe(info.model)
    return {
        "sae": info.name,
        "sae_hash": info.hash,
        "architecture": info.architecture,
        "d_sae": info.d_sae,
        "site": info.site,
        "folder": str(loaded.folder),
        "model": described.id,
        "model_hash": described.model_hash,
        "dtype": described.dtype,
        "tokens": {FORGET: frequencies.first.n_tokens, "retain": frequencies.second.n_tokens},
    }
