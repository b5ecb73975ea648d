"""What was understood of the base: whether circuits still carry their behaviour in the changed model, and SAEs its activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, NextLogprob, capture, reconstruct
from ...clients.results.captures import Captures
from ...protos.errors import NotFound, ProbewireError
from ..circuits import Circuit, ablated
from ..tasks import FittedTask, Task, fit
from .probes import SHIPPED, clusters_of
from .subject import Subject
from .suites import Measure

__all__ = ["Explained", "circuit_measures", "sae_measures"]

Explained = Circuit | tuple[Circuit, Task]
"""A circuit whose card names a shipped task, or one with its task."""
EXAMPLES = 16
TEXTS_A_REQUEST = 16
GONE = 0.25
"""Of the base's span between the whole model and the empty circuit: below it there is no behaviour to be faithful to."""

Floats = NDArray[np.float64]


def circuit_measures(
    client: Client, circuits: Sequence[Explained], bound: float, *, n: int = EXAMPLES, model: str = ""
) -> tuple[list[Measure], list[str]]:
    """One measure a circuit, and why some are not measured."""
    measures: list[Measure] = []
    lost: list[str] = []
    for given in circuits:
        circuit, task = given if isinstance(given, tuple) else (given, None)
        told = f"circuit {circuit.card.name or circuit.id}"
        try:
            measures.append(_circuit(told, circuit, _examples(client, circuit, task, n, model), bound))
        except ProbewireError as error:
            lost.append(f"{told}: {error}")
    return measures, lost


def _examples(client: Client, circuit: Circuit, task: Task | None, n: int, model: str) -> FittedTask:
    info, made_on = client.describe(model), circuit.origin.model_hash
    if made_on and made_on != info.model_hash:
        raise NotFound(f"it is of {circuit.origin.model or made_on[:12]}, and this is {info.id}")
    if task is None:
        name = str((circuit.card.task or {}).get("name", ""))
        if name not in SHIPPED:
            raise NotFound(
                f"its card names the task {name!r}, which is not one of {', '.join(SHIPPED)}; give (circuit, task)"
            )
        task = SHIPPED[name]()
    whole = fit(task, client, model=model)
    kept = [one for one in whole.examples if circuit.space.n_tokens in (None, len(one.clean))][:n]
    if not kept:
        raise NotFound(f"no example of {task.name} has {circuit.space.n_tokens} tokens, which it stands at")
    return replace(whole, examples=tuple(replace(one, name=str(i)) for i, one in enumerate(kept)))


def _circuit(told: str, circuit: Circuit, task: FittedTask, bound: float) -> Measure:
    ablation = "zero" if circuit.origin.ablation == "zero" else "patch"
    ends: list[list[float]] = []

    def shares(subjects: Sequence[Subject]) -> Floats:
        """(v − F(∅)) / (F(M) − F(∅)) of each example; 0 throughout where the changed model has no such behaviour left."""
        ends.clear()
        found: list[Floats] = []
        for subject in subjects:
            judge = ablated(
                subject.client, task.clean, task.corrupt, task.metrics, circuit.space, ablation=ablation, progress=False,
                hooks=subject.hooks, variants=subject.variants, model=subject.model,
            )  # fmt: skip
            ends.append([judge.empty, judge.full])
            span = judge.full - judge.empty
            if span == 0 or (found and span / (ends[0][1] - ends[0][0]) < GONE):
                found.append(np.zeros(len(task)))
            else:
                found.append((judge.values([circuit.mask])[0] - judge.empty) / span)
        return np.stack(found)

    def beside(values: Floats) -> dict[str, Any]:
        spans = [full - empty for empty, full in ends]
        gone = bool(spans[0] == 0 or spans[1] / spans[0] < GONE)
        return {
            "faithfulness": [float(row.mean()) for row in values],
            "empty_and_whole": ends,
            "behaviour_gone": gone,
            "ablation": ablation,
        }

    note = f"share of {task.name} that {len(circuit)} units carry{' (its edges left aside)' if circuit.edges else ''}"
    return Measure(
        told,
        "interpretability",
        shares,
        bound,
        unit="faithfulness",
        clusters=clusters_of(task),
        details=beside,
        note=note,
    )


def sae_measures(
    client: Client, names: Sequence[str], texts: Sequence[str], bounds: Mapping[str, float], *, model: str = ""
) -> list[Measure]:
    """Of each loaded SAE, on the same texts: variance explained, latents that fire, and nats lost where it is spliced in.

    The first token is left out: its row is massive in most models, and no SAE is trained on it.
    Raises NotFound for a name that is not loaded.
    """
    sites = {one.name: one.site for one in client.saes(model)}
    if missing := [name for name in names if name not in sites]:
        raise NotFound(f"there are no SAEs {missing}; loaded are {', '.join(sites) or 'none'}: client.load_sae")
    found: list[Measure] = []
    for name in names:
        rows = _Fidelity(name, sites[name], tuple(texts))
        counts = [max(1, len(client.tokenize(text, model=model).token_ids) - 1) for text in texts]
        found += [
            Measure(
                f"SAE {name}: variance explained", "interpretability", rows.explained, bounds["explained_variance"],
                unit="share", weights=counts,
            ),
            Measure(
                f"SAE {name}: latents that fire", "interpretability", rows.fires, bounds["l0"], "higher",
                unit="relative change", weights=counts, between=True, details=rows.beside,
            ),
            Measure(
                f"SAE {name}: loss where it is spliced in", "interpretability", rows.lost, bounds["sae_loss"], "higher",
                unit="nats", weights=counts,
            ),
        ]  # fmt: skip
    return found


class _Fidelity:
    """One SAE over the texts of one validation, read once for its three measures."""

    def __init__(self, name: str, site: str, texts: tuple[str, ...]) -> None:
        self.name, self.site, self.texts = name, site, texts
        self._read: tuple[tuple[Subject, ...], list[dict[str, Floats]]] | None = None

    def explained(self, subjects: Sequence[Subject]) -> Floats:
        """[subject, text]: 1 − the text's mean ‖x − x̂‖² ÷ the mean ‖x − x̄‖² over all texts, of the same model."""
        return np.stack([1 - one["residual"] / one["deviation"] for one in self._of(subjects)])

    def fires(self, subjects: Sequence[Subject]) -> Floats:
        """[text]: |L0 after − before| ÷ the mean before."""
        before, after = (one["l0"] for one in self._of(subjects))
        return np.abs(after - before) / max(float(before.mean()), 1e-9)

    def lost(self, subjects: Sequence[Subject]) -> Floats:
        """[subject, text]: mean −log P of the text's tokens with the SAE in the row's place, less that without."""
        return np.stack([one["lost"] for one in self._of(subjects)])

    def beside(self, _: Floats) -> dict[str, Any]:
        assert self._read is not None, "measured first"
        l0 = [float(one["l0"].mean()) for one in self._read[1]]
        return {"l0": l0, "site": self.site}

    def _of(self, subjects: Sequence[Subject]) -> list[dict[str, Floats]]:
        if self._read is None or self._read[0] != tuple(subjects):
            self._read = tuple(subjects), [self._measured(one) for one in subjects]
        return self._read[1]

    def _measured(self, subject: Subject) -> dict[str, Floats]:
        rows: list[NDArray[Any]] = []
        made: list[NDArray[Any]] = []
        l0, lost = list[float](), list[float]()
        splice = reconstruct(self.site, self.name, spans=[(1, None)])
        for start in range(0, len(self.texts), TEXTS_A_REQUEST):
            some = {str(i): text for i, text in enumerate(self.texts[start : start + TEXTS_A_REQUEST])}
            items, edits = subject.inputs(some), subject.edits(list(some))
            loss = capture("logits", reduce=NextLogprob(), id="loss")
            row = capture(self.site, spans=[(1, None)], id="row")
            fired = capture(self.site, latents=self.name, top_k=1, spans=[(1, None)], id="fired")
            options: dict[str, Any] = {"model": subject.model, "progress": False}
            plain = subject.client.run(items, hooks=edits, capture=[loss, row, fired], **options)
            spliced = subject.client.run(items, hooks=[*edits, splice], capture=[loss, row], **options)
            for name in some:
                own, other = plain.inputs[name].captures, spliced.inputs[name].captures
                rows.append(own.hook("row")[self.site].astype(np.float64))
                made.append(other.hook("row")[self.site].astype(np.float64))
                l0.append(float(own.hook("fired").latents(self.site).counts.mean()))
                lost.append(_surprise(other) - _surprise(own))
        middle = np.concatenate(rows).mean(axis=0)
        deviation = np.mean([((x - middle) ** 2).sum() for row in rows for x in row])
        residual = np.array([((x - y) ** 2).sum(axis=-1).mean() for x, y in zip(rows, made, strict=True)])
        return {
            "residual": residual,
            "deviation": np.full(len(rows), float(deviation), dtype=np.float64),
            "l0": np.array(l0),
            "lost": np.array(lost),
        }


def _surprise(captures: Captures) -> float:
    return -float(np.mean(captures.hook("loss")["logits"].astype(np.float64)))
