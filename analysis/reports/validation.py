"""After: does a variant do what it is for, and what did it break? Everything is paired: the same items, in the same requests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ...clients import Client
from ...protos.errors import InvalidArgument
from ...protos.variants.variant import Variant
from ..datasets import load_set
from .behaviours import pronoun_measures
from .harness_scores import harness_measures
from .harness_tasks import documents
from .interpretability import Explained, circuit_measures, sae_measures
from .probes import shipped_probes
from .report_files import FORMAT_VERSION, saved
from .statistics import wilson
from .subject import Subject
from .suites import BOUNDS, Measure, answers, checked, general_measures, over_refusal, repeated, task_measure
from .tried import tried
from .verdicts import Check, Verdict, holm, overall

__all__ = ["SUITES", "Suite", "ValidationReport", "validate", "validate_variant"]

Suite = Literal["facts", "tasks", "safety", "general", "interpretability"]
SUITES: tuple[Suite, ...] = get_args(Suite)
N = 200
"""Examples of each task: with 188 and no changed answer two points can be certified, with fewer they cannot."""
DOCUMENTS = 32
SPEED_TOKENS = 16
SAE_TEXTS = 32


@dataclass(frozen=True, slots=True, eq=False)
class ValidationReport:
    """Checks of every suite, each with its interval, bound and verdict."""

    checks: tuple[Check, ...]
    verdict: Verdict
    about: Mapping[str, Any]
    """Base, variant, seed, seconds, bounds, data sets."""
    cannot_show_harm: tuple[str, ...] = ()
    """Tasks that the base does no better than chance, which so can only get better."""
    not_tested: tuple[str, ...] = ()
    performance: Mapping[str, float] = field(default_factory=dict[str, float])
    """tokens_per_s of base and changed, measured one after the other: a figure, no check."""

    @property
    def suites(self) -> dict[str, Verdict]:
        """Suite → the verdict on its checks together."""
        names = dict.fromkeys(check.suite for check in self.checks)
        return {name: overall([check for check in self.checks if check.suite == name]) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Plain data, as validation.json holds it."""
        return {
            "format": "probewire.validation",
            "version": FORMAT_VERSION,
            **self.about,
            "verdict": self.verdict,
            "suites": self.suites,
            "checks": [check.to_json() for check in self.checks],
            "cannot_show_harm": list(self.cannot_show_harm),
            "not_tested": list(self.not_tested),
            "performance": dict(self.performance),
        }

    def save(self, folder: str | Path, *, texts: bool = True) -> Path:
        """Write validation.json and validation.html; `texts` False: prompts and answers are left out of both. Gives the folder."""
        return saved("validation", self.to_json(), Path(folder), texts=texts)

    def __repr__(self) -> str:
        counts = Counter(check.verdict for check in self.checks)
        told = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        return f"ValidationReport({self.verdict}: {told})"


def validate_variant(
    client: Client,
    variant: Variant | str,
    *,
    suites: Sequence[Suite] = SUITES,
    bounds: Mapping[str, float] | None = None,
    intended: Sequence[Measure] = (),
    extra: Sequence[Measure] = (),
    lm_eval_tasks: Sequence[str] = (),
    circuits: Sequence[Explained] = (),
    saes: Sequence[str] = (),
    n: int = N,
    seed: int = 0,
    progress: bool = True,
    model: str = "",
) -> ValidationReport:
    """Validate a variant: the value, which is loaded for this alone, or the name of one that is loaded.

    `intended`: what it is for, with a bound that it must pass; `extra`: more measures of any suite. `bounds` over BOUNDS by
    name. `lm_eval_tasks`: names of the harness's tasks, ours or its own. `circuits`: of a library (`CircuitLibrary.circuits()`),
    or with their tasks; `saes`: names of loaded ones. Raises what `load_variant` raises, NotFound for a name
    that is not loaded, FailedPrecondition where scipy or the harness is missing, Unavailable without the documentation.
    """
    options: dict[str, Any] = {"suites": suites, "bounds": bounds, "intended": intended, "extra": extra}
    options |= {
        "lm_eval_tasks": lm_eval_tasks,
        "circuits": circuits,
        "saes": saes,
        "n": n,
        "seed": seed,
        "progress": progress,
    }
    if isinstance(variant, str):
        info = client.variant(variant, model)
        about = {"name": info.name, "version": info.version, "hash": info.hash}
        place = nullcontext(Subject.of(client, variant=f"{info.name}@{info.version}", model=model))
    else:
        about = {"name": variant.manifest.name, "hash": variant.hash}
        place = tried(client, variant, model=model)
    with place as subject:
        return validate(subject, about=about, **options)


def validate(
    subject: Subject,
    *,
    suites: Sequence[Suite] = SUITES,
    bounds: Mapping[str, float] | None = None,
    intended: Sequence[Measure] = (),
    extra: Sequence[Measure] = (),
    lm_eval_tasks: Sequence[str] = (),
    circuits: Sequence[Explained] = (),
    saes: Sequence[str] = (),
    n: int = N,
    seed: int = 0,
    progress: bool = True,
    about: Mapping[str, Any] | None = None,
) -> ValidationReport:
    """The same of anything that changes a model: hooks, a session, a variant. `about`: its name and hash, for the report."""
    began, pair = time.perf_counter(), [subject.base, subject]
    if wrong := [suite for suite in suites if suite not in SUITES]:
        raise InvalidArgument(f"there are no suites {wrong}; there are {', '.join(SUITES)}")
    limits = {**BOUNDS, **(bounds or {})}
    if unknown := sorted(set(limits) - set(BOUNDS)):
        raise InvalidArgument(f"there are no bounds {unknown}; there are {', '.join(BOUNDS)}")
    measures = [*intended, *extra] if "facts" in suites else [*extra]
    harmless: list[str] = []
    if "tasks" in suites:
        measures += _tasks(subject, limits, n, progress)
    found = answers(pair, _questions(), progress=progress) if {"safety", "general"} & set(suites) else None
    if "general" in suites:
        texts = [str(row["text"]) for row in load_set("general").data["texts"]]
        measures += general_measures(subject, limits, texts, documents(DOCUMENTS), progress=progress)
        assert found is not None
        measures.append(repeated(found, limits["repetition"]))
    left_out = list[str]()
    if "safety" in suites:
        assert found is not None
        measures.append(over_refusal(found, limits["refusals"]))
        try:
            measures += pronoun_measures(
                subject.client, spread=limits["pronouns"], accuracy=limits["accuracy"], model=subject.model
            )
        except InvalidArgument as error:  # a tokenizer without them
            left_out.append(f"pronouns: {error}")
    if "interpretability" in suites:
        explained, lost = circuit_measures(subject.client, circuits, limits["faithfulness"], model=subject.model)
        texts = [str(row["text"]) for row in load_set("general").data["texts"]][:SAE_TEXTS]
        measures += [*explained, *sae_measures(subject.client, saes, texts, limits, model=subject.model)]
        left_out += lost
    measures += harness_measures(pair, lm_eval_tasks, limits["accuracy"], n=n)
    checks: list[Check] = []
    for measure in measures:
        check = checked(measure, pair, seed=seed)
        if measure.suite == "tasks" and _at_chance(check):
            harmless.append(measure.name)
            continue
        checks.append(check)
    info = subject.client.describe(subject.model)
    whole = {
        "base": {"id": info.id, "model_hash": info.model_hash, "dtype": info.dtype, "backend": info.backend},
        "variant": dict(about or {"name": "", "hash": ""}),
        "changed_by": {"hooks": len(subject.hooks), "variants": [use.name for use in subject.variants]},
        "seed": seed,
        "bounds": limits,
        "sets": {name: load_set(name).sha256 for name in ("general", "benign")},
        "seconds": round(time.perf_counter() - began, 2),
    }
    speed = _speed(subject)
    decided = _adjusted(checks, {measure.name for measure in intended})
    return ValidationReport(
        tuple(decided),
        overall(decided),
        whole,
        tuple(harmless),
        (*left_out, *_not_tested(suites, intended, lm_eval_tasks, circuits, saes)),
        speed,
    )


def _tasks(subject: Subject, limits: Mapping[str, float], n: int, progress: bool) -> list[Measure]:
    tasks = shipped_probes(subject.client, n=n, model=subject.model)
    return [task_measure(name, task, limits["accuracy"], progress=progress) for name, task in tasks.items()]


def _at_chance(check: Check) -> bool:
    """Whether the base is no better than two choices' chance plus two standard errors."""
    right, n = check.details["right"][0], check.figure.n
    return wilson(right, n)[0] <= 0.5


def _questions() -> list[str]:
    return [str(row["text"]) for row in load_set("benign").data["questions"]]


def _adjusted(checks: Sequence[Check], intended: set[str]) -> list[Check]:
    """Harm by suite, among its checks; what the variant is for is tested once."""
    found: list[Check] = []
    for suite in dict.fromkeys(check.suite for check in checks):
        mine = [check for check in checks if check.suite == suite]
        found += [check for check in mine if check.name in intended]
        found += holm([check for check in mine if check.name not in intended])
    return found


def _speed(subject: Subject) -> dict[str, float]:
    """Tokens a second of one greedy answer each, after one that warms up; others' requests are in it."""
    found: dict[str, float] = {}
    for name, one in (("", subject), ("base", subject.base), ("variant", subject)):
        began = time.perf_counter()
        made = one.client.generate(
            one.inputs({"speed": "The weather today is"}),
            hooks=one.edits(["speed"]),
            model=one.model,
            max_new_tokens=SPEED_TOKENS,
            ignore_eos=True,
        )
        if name:
            found[name] = round(len(made.inputs["speed"].new) / (time.perf_counter() - began), 2)
    return found


def _not_tested(
    suites: Sequence[Suite],
    intended: Sequence[Measure],
    lm_eval_tasks: Sequence[str],
    circuits: Sequence[Explained],
    saes: Sequence[str],
) -> tuple[str, ...]:
    found = [f"the suite {name}: it was left out" for name in SUITES if name not in suites]
    if not intended:
        found.append("the intended effect: no measure of it was given")
    if not lm_eval_tasks:
        found.append("lm-evaluation-harness: no task was named")
    if "interpretability" in suites:
        found += ["circuits: none was given"] * (not circuits) + ["SAEs: none was named"] * (not saes)
    return (*found, "long contexts, other languages, sampling at a temperature")
