"""Dual-objective SAEs (seed 003): six ways to keep the latents of two corpora apart, against the plain SAE.

Equal data, steps and L0, three seeds; forgetting with latents at random as controls; three plots. Killed, it goes on.

Forgetting is measured on texts (`text_forgetting`): 6 held-out documents of each corpus, 48 tokens each, three multipliers, the rise of cross-entropy
on the corpus to forget where that on the other reaches .05 nats. `--questions` is SAEBench's protocol, scaled down, many times as long.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from child import BUILD
from numpy.typing import NDArray

from probewire.analysis.datasets import load_set
from probewire.analysis.plots.style import BLUE, ORANGE, PALETTE, finished, new, styled, title
from probewire.analysis.sae.data import corpus
from probewire.analysis.sae.data.batches import ArrayBatches
from probewire.analysis.sae.data.collect import collect
from probewire.analysis.sae.data.documentation import documentation
from probewire.analysis.sae.data.store import ActivationStore
from probewire.analysis.sae.dual.dual_batches import DualBatches, split_size
from probewire.analysis.sae.dual.gates import ClusterGates, FeatureAttention
from probewire.analysis.sae.dual.guided import GradientGuided
from probewire.analysis.sae.dual.model_signal import ModelSignal, model_signal
from probewire.analysis.sae.dual.separation import Separation, rate_ratios, separation_auroc
from probewire.analysis.sae.dual.thresholds import with_thresholds
from probewire.analysis.sae.model.configs import TrainConfig
from probewire.analysis.sae.model.loaded import load
from probewire.analysis.sae.scoring.scores import ExplainedVariance
from probewire.analysis.sae.training.curves import Curves
from probewire.analysis.sae.training.training import train
from probewire.analysis.sae.unlearning.forgetting import forgetting
from probewire.analysis.sae.unlearning.mcq import known_questions
from probewire.analysis.sae.unlearning.questions import Question
from probewire.analysis.sae.unlearning.text_forgetting import text_forgetting
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService

SITE = "resid_post.15"
SIZES = {
    "tiny": {"rows": 6_000, "d_sae": 768, "steps": 150, "batch": 256, "seeds": 3},
    "full": {"rows": 40_000, "d_sae": 1152, "steps": 300, "batch": 512, "seeds": 3},
    "small": {"rows": 24_000, "d_sae": 768, "steps": 200, "batch": 384, "seeds": 3},
}
K = 24
HELD_OUT = 0.2
MAX_RATE = 0.05
"""Of a latent on retain rows, adaptive thresholds; below K / d_sae the common L0 could not be reached."""
TOKENS = 1500
"""Of each side, for firing frequencies."""
HELD_TEXTS, HELD_TOKENS, MULTIPLIERS = 6, 48, (10.0, 50.0, 250.0)
"""Of forgetting on texts; the texts are the last of each side, of which no row is trained on."""
GATE = 0.9
"""Share of the retain questions to keep: of 16, one may go."""
FOLDER = BUILD / "surgery-sae"
VARIANTS: dict[str, str] = {
    "baseline": "Baseline SAE",
    "guided": "Gradient-guided",
    "guided_model": "Gradient-guided, by the model's loss",
    "separation": "Enhanced separation",
    "cluster_gates": "Clusters with gates",
    "feature_attention": "Per-feature attention",
    "adaptive": "Adaptive thresholds",
}
Rows = NDArray[np.float32]


def manager(name: str, labels: Any, steps: int, seed: int, signal: ModelSignal) -> Any:
    """The added loss of a variant; None for those that train as the baseline does."""
    made: dict[str, Callable[[], Any]] = {
        "guided": lambda: GradientGuided(labels, steps),
        "guided_model": lambda: GradientGuided(labels, steps, signal=signal),
        "separation": lambda: Separation(labels, 0.02),
        "cluster_gates": lambda: ClusterGates(labels, seed=seed),
        "feature_attention": lambda: FeatureAttention(labels, seed=seed),
    }
    return made[name]() if name in made else None


def halves() -> dict[str, list[str]]:
    """The prose of SymPy (to forget) and of NetworkX (to retain)."""
    documentation()
    folder = Path.home() / ".cache" / "probewire" / "documentation"
    lines = [json.loads(line) for line in next(folder.glob("prose-*.jsonl")).read_text().splitlines()]
    networkx = [line["source"].startswith("networkx") for line in lines]
    texts: dict[str, list[str]] = {"forget": [], "retain": []}
    for line, retained in zip(lines, networkx, strict=True):
        texts["retain" if retained else "forget"].append(line["text"])
    return texts


def rows_of(client: Client, root: Path, n: int) -> dict[str, Rows]:
    """[row, d_in] of each side; massive rows are left out by the rule of `collect`."""
    found: dict[str, Rows] = {}
    for name, texts in halves().items():
        collect(client, corpus.texts(texts, name), SITE, root / name, pack=True, n_tokens=n)
        found[name] = ActivationStore.open(root / name).array()
    scale = np.sqrt(found["forget"].shape[1]) / np.linalg.norm(np.concatenate(list(found.values())), axis=1).mean()
    print(f"rows {[len(rows) for rows in found.values()]}, mean norm √d_in / {scale:.4g}")
    return found


def trained(
    name: str, seed: int, rows: Mapping[str, Rows], size: Mapping[str, int], root: Path, signal: ModelSignal
) -> Path:
    """The folder of one SAE, its thresholds set for the common L0."""
    n_forget, n_retain = split_size(size["batch"])
    cut = {side: found[: round(len(found) * (1 - HELD_OUT))] for side, found in rows.items()}
    batches = DualBatches(
        ArrayBatches(cut["forget"], n_forget, seed, manifest={"site": SITE}),
        ArrayBatches(cut["retain"], n_retain, seed + 1000, manifest={"site": SITE}),
    )
    config = TrainConfig(
        architecture="batchtopk", d_sae=size["d_sae"], k=K, steps=size["steps"], batch_size=size["batch"], lr=1e-3,
        lr_decay_steps=size["steps"] // 5, normalisation="expected_average_only_in", normalisation_batches=10, seed=seed,
        checkpoints=1, options={"topk_threshold_lr": 0.05},
    )  # fmt: skip
    made = "baseline" if name == "adaptive" else name
    folder = root / f"{made}-{seed}"
    train(batches, config, folder, added_loss=manager(made, batches.labels, size["steps"], seed, signal))
    out = root / f"{name}-{seed}-matched"
    if not (out / "run.json").is_file():
        both = np.concatenate([cut["forget"][:4000], cut["retain"][:4000]])
        retain, rate = (cut["retain"], MAX_RATE) if name == "adaptive" else (None, None)
        with_thresholds(folder, out, both, K, retain=retain, max_rate=rate)
    return out


def figures(folder: Path, rows: Mapping[str, Rows]) -> dict[str, float]:
    """Held-out explained variance on each side, L0, dead latents, and how far latents tell the corpora apart."""
    sae = load(folder)
    found: dict[str, float] = {}
    fires: list[NDArray[np.bool_]] = []
    for side, every in rows.items():
        held = every[round(len(every) * (1 - HELD_OUT)) :]
        variance, latents = ExplainedVariance(), sae.encode(held)
        variance.add(held, sae.decode(latents))
        found[f"ev_{side}"] = float(variance.value)
        fires.append(latents > 0)
    both, labels = np.concatenate(fires), np.repeat([True, False], [len(side) for side in fires])
    found |= {"l0": float(both.sum() / len(both)), "dead": float(1 - both.any(axis=0).mean())}
    return found | {"auroc": separation_auroc(both, labels)}


def forgets(client: Client, folder: Path, questions: Mapping[str, list[Question]]) -> dict[str, Any]:
    """SAEBench's protocol, scaled down: one threshold, 20 latents, 2 multipliers, a draw of random latents."""
    texts = halves()
    run = forgetting(
        client, folder, forget_texts=texts["forget"], retain_texts=texts["retain"], forget_questions=questions["forget"],
        retain_questions={"retain": questions["retain"]}, thresholds=(0.01,), n_latents=(20,), multipliers=(50.0, 200.0),
        max_tokens=TOKENS, control_draws=1, gate=GATE, site=SITE,
    )  # fmt: skip
    return {"forgetting": run.score, "random": list(run.control_scores), "reasons": list(run.reasons)}


def forgets_texts(client: Client, folder: Path, texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """One threshold, 20 latents, a draw of random latents; the unclamped model's losses are read once a request."""
    held = {side: [text for text in own[-200:] if len(text) > 300][-HELD_TEXTS:] for side, own in texts.items()}
    run = text_forgetting(
        client, folder, forget_texts=texts["forget"], retain_texts=texts["retain"], forget_held=held["forget"],
        retain_held=held["retain"], multipliers=MULTIPLIERS, max_tokens=TOKENS // 2, context=HELD_TOKENS, site=SITE,
        progress=False,
    )  # fmt: skip
    return run.to_json()


def asked(client: Client) -> dict[str, list[Question]]:
    """The questions of the set `two_fields` that the model answers by itself."""
    data = load_set("two_fields").data
    sides = {
        side: [Question(q["question"], tuple(q["choices"]), 0) for q in data[side]] for side in ("forget", "retain")
    }
    found = {side: known_questions(client, own) for side, own in sides.items()}
    print({side: f"{len(own)} of {len(sides[side])} known" for side, own in found.items()}, flush=True)
    return found


def sae(args: argparse.Namespace) -> None:
    """Train and judge all, then clamp all; print, draw."""
    size = SIZES[args.size]
    root = FOLDER / args.size
    with Client.inprocess(InProcessService.create(dtype="float32", device="cpu")) as client:
        rows = rows_of(client, root, size["rows"])
        texts = halves()
        signal = model_signal(client, SITE, texts["forget"], texts["retain"])
        runs = [(name, seed) for seed in range(size["seeds"]) for name in VARIANTS]
        for name, seed in runs:
            _once(
                root / f"{name}-{seed}.json",
                lambda n=name, s=seed: figures(trained(n, s, rows, size, root, signal), rows),
            )
        questions = asked(client) if args.questions else None
        for name, seed in () if args.no_forgetting else runs:
            folder = root / f"{name}-{seed}-matched"
            _once(root / f"{name}-{seed}-texts.json", lambda f=folder: forgets_texts(client, f, texts))
            if questions is not None:
                _once(root / f"{name}-{seed}-forgets.json", lambda f=folder, q=questions: forgets(client, f, q))
    table(root)
    draw(root, rows)


def _once(path: Path, work: Callable[[], dict[str, Any]]) -> None:
    if not path.exists():
        since = time.perf_counter()
        found = work()
        path.write_text(json.dumps({**found, "seconds": time.perf_counter() - since}))
        print(f"{path.stem}: {found}", flush=True)


def results(root: Path, kind: str = "") -> dict[str, list[dict[str, Any]]]:
    """Variant → what was found, a seed each, as far as it is there."""
    return {
        name: [json.loads(path.read_text()) for path in sorted(root.glob(f"{name}-[0-9]{kind}.json"))]
        for name in VARIANTS
    }


def table(root: Path) -> None:
    """Means and ranges over seeds, and whether a variant helps: its texts' score above the baseline's, seed by seed, and above random

    latents', each of its intervals' lower ends included.
    """
    found, clamped, asked_of = results(root), results(root, "-texts"), results(root, "-forgets")
    columns = ("ev_retain", "ev_forget", "l0", "dead", "auroc")
    print("| variant | forgetting, texts | random latents | questions | " + " | ".join(columns) + " | helps |")
    print("|" + " --- |" * (len(columns) + 5))
    base = [run["score"] for run in clamped["baseline"]]
    for name, runs in found.items():
        scores = [run["score"] for run in clamped[name]]
        randoms = [score for run in clamped[name] for score in run["control_scores"]]
        cells = [_cell(scores), _cell(randoms), _cell([run["forgetting"] for run in asked_of[name]])]
        cells += [_cell([run[column] for run in runs]) for column in columns]
        helps = bool(scores) and min(run["interval"][0] for run in clamped[name]) > max([*base, *randoms, 0.0])
        print(
            f"| {VARIANTS[name]} | "
            + " | ".join(cells)
            + f" | {'–' if name == 'baseline' else 'yes' if helps else 'no'} |"
        )
        reached = [run["reaches"] for run in clamped[name]]
        if reached and not all(reached):
            print(f"|   (cost reached in {sum(reached)} of {len(reached)}: else at −{MULTIPLIERS[-1]:g}) |" + " |" * 9)
    print(flush=True)


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]" if values else "–"


@styled
def scores_plot(root: Path) -> Any:
    """unlearning_scores: a bar a variant with its number on it, seeds as dots, random latents as lines."""
    figure, axes = new(7.4, 3.6)
    found = {name: runs for name, runs in results(root, "-texts").items() if runs}
    for index, runs in enumerate(found.values()):
        scores = [run["score"] for run in runs]
        randoms = [score for run in runs for score in run["control_scores"]]
        axes.bar(index, np.mean(scores), width=0.62, color=BLUE, zorder=2)
        axes.plot([index] * len(scores), scores, "o", color="black", markersize=3, zorder=4)
        if randoms:
            axes.plot([index - 0.36, index + 0.36], [np.mean(randoms)] * 2, color=ORANGE, linewidth=2, zorder=3)
        axes.annotate(f"{np.mean(scores):.3f}", (index, max(scores)), (0, 5), textcoords="offset points", ha="center")
    axes.set_xticks(range(len(found)), [VARIANTS[name].replace(" ", "\n", 1) for name in found])
    axes.set_ylabel("nats a token")
    top = max(run["score"] for runs in found.values() for run in runs)
    low = min(run["score"] for runs in found.values() for run in runs)
    axes.set_ylim(min(0.0, 1.25 * low), max(0.01, 1.25 * top))
    title(
        axes,
        "Forgetting by clamping latents",
        "rise of cross-entropy on texts to forget at +.05 on those to retain; dots: seeds; orange: random latents",
    )
    return finished(figure, root / "unlearning_scores.png")


@styled
def losses_plot(root: Path) -> Any:
    """training_losses: a line a variant, log axis, the first seed."""
    figure, axes = new(7.4, 3.6)
    for colour, name in zip(PALETTE, (name for name in VARIANTS if name != "adaptive"), strict=False):
        curves = Curves.read(root / f"{name}-0" / "curves.json")
        axes.plot(curves["step"], curves.losses["mse_loss"], color=colour, label=VARIANTS[name], linewidth=1.2)
    axes.set(yscale="log", xlabel="step", ylabel="squared error (log)")
    axes.legend()
    axes.grid(visible=True, axis="y", which="both")
    title(axes, "Training", "squared error a row, of the batch; adaptive thresholds train as the baseline")
    return finished(figure, root / "training_losses.png")


@styled
def importance_plot(root: Path, rows: Mapping[str, Rows]) -> Any:
    """feature_importance: log rate ratios of the per-feature SAE, by the side on which a latent fires more."""
    latents = load(root / "feature_attention-0-matched")
    fires = [latents.encode(every[round(len(every) * (1 - HELD_OUT)) :]) > 0 for every in rows.values()]
    both, labels = np.concatenate(fires), np.repeat([True, False], [len(side) for side in fires])
    ratios = rate_ratios(both[:, both.any(axis=0)], labels)
    null = rate_ratios(both[:, both.any(axis=0)], np.random.default_rng(0).permutation(labels))
    figure, axes = new(7.4, 3.4)
    bins = np.linspace(-7, 7, 57)
    axes.hist(ratios[ratios < 0], bins, color=BLUE, alpha=0.6, label="fire more on the corpus to retain")
    axes.hist(ratios[ratios >= 0], bins, color=ORANGE, alpha=0.6, label="fire more on the corpus to forget")
    axes.hist(null, bins, histtype="step", color="black", linewidth=1, label="labels at random")
    axes.set(xlabel="log (rate on forget rows / rate on retain rows)", ylabel="latents")
    axes.legend()
    title(
        axes,
        "Importance of latents, per-feature attention",
        f"{len(ratios)} latents that fire on held-out rows, seed 0",
    )
    return finished(figure, root / "feature_importance.png")


def draw(root: Path, rows: Mapping[str, Rows]) -> None:
    """The three plots that the seed names; of scores only where there are some."""
    if any(results(root, "-texts").values()):
        scores_plot(root)
    losses_plot(root)
    importance_plot(root, rows)
    print(f"plots in {root}")


def main() -> None:
    """python benchmarks/surgery_sae.py [--size small|full] [--no-forgetting] [--questions]"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--no-forgetting", action="store_true")
    parser.add_argument("--questions", action="store_true")
    sae(parser.parse_args())


if __name__ == "__main__":
    main()
