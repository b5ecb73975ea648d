"""Several SAEs' scores side by side: as data with SAEBench's names, as a table, as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...plots.style import Figure
from .absorption import Absorption
from .intervals import Estimate
from .losses import Losses
from .probing import Probing
from .scorecard_plot import Row, score_dots
from .scores import Scores
from .spurious import Scr, mean_scores as mean_scr
from .targeted import Tpp, mean_scores as mean_tpp

__all__ = ["Entry", "Scorecard"]

SHOWN_NS = (2, 10, 50)
"""Numbers of latents that the table and the picture show of TPP and SCR, where they were run."""
REFERENCES = {"llm": "of the model's coordinates", "pca": "of principal components"}
"""Probes without an SAE."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One SAE's scores."""

    folder: str
    architecture: str
    d_in: int
    d_sae: int
    weights_hash: str
    """SHA-256 of its weights as saved."""
    control: bool
    """Never trained, and here to compare with."""
    scores: Scores | None = None
    probing: Probing | None = None
    tpp: Sequence[Tpp] = ()
    scr: Sequence[Scr] = ()
    absorption: Absorption | None = None
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    """Evaluation → why it gives no score."""


@dataclass(frozen=True, slots=True, eq=False)
class Scorecard:
    """Scores of one or more SAEs on the same texts at the same site."""

    entries: Mapping[str, Entry]
    losses: Losses | None
    about: Mapping[str, Any]
    """Model, site, texts, seeds and settings."""

    def to_json(self) -> dict[str, Any]:
        """{"about": …, "saes": {name: {"core": …, "sparse_probing": …, "tpp": …, "scr": …, "absorption_first_letter": …}}}"""
        return _plain({"about": dict(self.about), "saes": {name: self._data(name) for name in self.entries}})

    def save(self, folder: str | Path) -> Path:
        """Write scorecard.json, scorecard.md and scorecard.png into a folder, and return it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scorecard.json").write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")
        (folder / "scorecard.md").write_text(self.markdown(), encoding="utf-8")
        self.figure(path=folder / "scorecard.png")
        return folder

    def markdown(self) -> str:
        """A table, a row a figure and a column an SAE, controls last, with 95 % intervals; how it was measured below."""
        names = [*self.entries]
        head = [f"{name} (control)" if self.entries[name].control else name for name in names]
        lines = [f"| | {' | '.join(_cell(name) for name in head)} |", f"|---|{'---|' * len(names)}"]
        for row in self.rows():
            lines.append(f"| {row.label} | {' | '.join(_number(row.values.get(name)) for name in names)} |")
            lines += [f"| … {what} | {' | '.join([_number(v)] * len(names))} |" for what, v in row.references.items()]
        notes = [f"- {name}: {what}: {why}" for name in names for what, why in self.entries[name].refused.items()]
        return "\n".join([*lines, "", *self._how(), *notes, ""])

    def figure(self, *, path: str | Path | None = None) -> Figure:
        """Every figure that lies on a scale from 0 to 1, a row each, SAEs by colour, with intervals."""
        rows = [row for row in self.rows() if row.on_scale]
        n, model = len(self.entries), str(self.about.get("model", "")).rpartition("/")[2]
        what = f"{n} SAE{'s' if n > 1 else ''} at {self.about.get('site', '')} of {model}"
        how = f"{self.about.get('texts', '')}; bars: 95 % intervals"
        controls = [name for name, entry in self.entries.items() if entry.control]
        return score_dots(rows, [*self.entries], controls=controls, what=what, how=how, path=path)

    def rows(self) -> list[Row]:
        """What the table and the picture show."""
        found = [*self._core_rows(), *self._probing_rows(), *self._targeted_rows(), *self._absorption_rows()]
        return [row for row in found if row.values]

    def __repr__(self) -> str:
        return f"Scorecard({', '.join(self.entries)} at {self.about.get('site', '')})"

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def _core_rows(self) -> list[Row]:
        scored = {name: entry.scores for name, entry in self.entries.items() if entry.scores is not None}
        rows = [
            Row("explained variance", {name: _bare(one.everything.explained_variance) for name, one in scored.items()}),
            Row(
                "… without massive activations",
                {name: _bare(one.usual.explained_variance) for name, one in scored.items()},
            ),
            Row("L0", {name: _bare(one.usual.l0) for name, one in scored.items()}, on_scale=False),
            Row("latents alive", {name: _bare(one.alive) for name, one in scored.items()}),
        ]
        if self.losses is None:
            return rows
        losses = self.losses
        named = {name: losses.to_json(name) for name in losses.saes}
        ce = {name: found["model_performance_preservation"] for name, found in named.items()}
        kl = {name: found.get("model_behavior_preservation", {}) for name, found in named.items()}
        return [
            *rows,
            Row("CE loss recovered", _scored(ce, "ce_loss_score", losses)),
            Row("… of a mean ablation", _scored(ce, "ce_loss_score_mean_ablation", losses)),
            Row("CE, nats a token", {name: _bare(one["ce_loss_with_sae"]) for name, one in ce.items()}, on_scale=False),
            Row("KL score", _scored(kl, "kl_div_score", losses)),
        ]

    def _probing_rows(self) -> list[Row]:
        probed = {name: entry.probing for name, entry in self.entries.items() if entry.probing is not None}
        if not probed:
            return []
        first = next(iter(probed.values()))
        rows: list[Row] = []
        for ending in dict.fromkeys(kind.partition("_")[2] for kind in first.kinds):
            k = ending.removeprefix("top_")
            label = "probe accuracy, " + (f"{k} latent{'' if k == '1' else 's'}" if k else "all latents")
            own = f"sae_{ending}".rstrip("_")
            references = {
                what: first.accuracy(f"{side}_{ending}".rstrip("_"))
                for side, what in REFERENCES.items()
                if f"{side}_{ending}".rstrip("_") in first.kinds
            }
            rows.append(Row(label, {name: one.accuracy(own) for name, one in probed.items()}, references=references))
        return rows

    def _targeted_rows(self) -> list[Row]:
        rows: list[Row] = []
        for n in SHOWN_NS:
            values = {name: _tpp(entry.tpp, n) for name, entry in self.entries.items()}
            rows.append(Row(f"TPP, {n} latents", {name: v for name, v in values.items() if v is not None}))
        for n in SHOWN_NS:
            values = {name: _scr(entry.scr, n) for name, entry in self.entries.items()}
            rows.append(Row(f"SCR, {n} latents", {name: v for name, v in values.items() if v is not None}))
        return rows

    def _absorption_rows(self) -> list[Row]:
        read = {name: entry.absorption for name, entry in self.entries.items() if entry.absorption is not None}
        return [
            Row("absorption, fraction (low is good)", {name: one.fraction for name, one in read.items()}),
            Row("absorption, full (low is good)", {name: one.full for name, one in read.items()}),
        ]

    def _data(self, name: str) -> dict[str, Any]:
        entry = self.entries[name]
        found: dict[str, Any] = {
            "sae": {
                "folder": entry.folder,
                "architecture": entry.architecture,
                "d_in": entry.d_in,
                "d_sae": entry.d_sae,
                "weights_hash": entry.weights_hash,
                "control": entry.control,
            }
        }
        if entry.scores is not None:
            core = entry.scores.to_json()
            if self.losses is not None:
                tokens = core["token_stats"]
                core |= self.losses.to_json(name)
                core["token_stats"] = {**tokens, **core["token_stats"]}
            found["core"] = core
        if entry.probing is not None:
            found["sparse_probing"] = entry.probing.to_json()
        if entry.tpp:
            found["tpp"] = {"tpp_metrics": mean_tpp(entry.tpp), "eval_result_details": [o.to_json() for o in entry.tpp]}
        if entry.scr:
            found["scr"] = {"scr_metrics": mean_scr(entry.scr), "eval_result_details": [o.to_json() for o in entry.scr]}
        if entry.absorption is not None:
            found["absorption_first_letter"] = entry.absorption.to_json()
        if entry.refused:
            found["refused"] = dict(entry.refused)
        return found

    def _how(self) -> list[str]:
        told = [
            f"- {key}: {value}"
            for key, value in self.about.items()
            if isinstance(value, (str, int)) and (key != "losses" or self.losses is None)
        ]
        if self.losses is not None:
            ablation = "at every position" if self.losses.everywhere else "where the SAE is spliced in"
            ce, zero = self.losses.ce(self.losses.clean), self.losses.ce(self.losses.zero)
            told.append(
                f"- losses: {self.losses.spliced.rule}; ablations {ablation}; CE {ce:.3f} clean, {zero:.3f} zeroed"
            )
        return told


def _scored(found: Mapping[str, Mapping[str, Any]], key: str, losses: Losses) -> dict[str, Estimate]:
    n = len(losses.n_predictions)
    return {
        name: Estimate(one[key], one[f"{key}_interval"][0], one[f"{key}_interval"][1], n)
        for name, one in found.items()
        if one.get(key) is not None
    }


def _tpp(found: Sequence[Tpp], n: int) -> Estimate | None:
    return _mean([one.score(n) for one in found if n in one.ns])


def _scr(found: Sequence[Scr], n: int) -> Estimate | None:
    return _mean([one.metric(n) for one in found if n in one.ns])


def _mean(found: Sequence[Estimate]) -> Estimate | None:
    """The mean over sets, whose texts are drawn apart: half-widths add up as squares."""
    if not found:
        return None
    value = sum(one.value for one in found) / len(found)
    below, above = (
        math.sqrt(sum((one.value - edge) ** 2 for one, edge in zip(found, edges, strict=True))) / len(found)
        for edges in ([one.low for one in found], [one.high for one in found])
    )
    return Estimate(value, value - below, value + above, sum(one.n for one in found))


def _bare(value: float) -> Estimate:
    """A figure of so many tokens that it is shown without an interval."""
    return Estimate(float(value), float("nan"), float("nan"), 0)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _number(value: Estimate | None) -> str:
    if value is None:
        return "–"
    digits = 3 if abs(value.value) < 10 else 1
    shown = f"{value.value:.{digits}f}"
    return shown if math.isnan(value.low) else f"{shown} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def _plain(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - data
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType] - data
    return None if isinstance(value, float) and not math.isfinite(value) else value
