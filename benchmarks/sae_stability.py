"""(j) Stability of SAEs: published controls, a planted dictionary, adaptive L0 and matched controls, each end to end.

    python benchmarks/run.py stability
    python benchmarks/sae_stability.py --activations FILE.npy --out FOLDER [--d-sae N] [--rows N] [--small | --quick]

The second is for activations of a model, [row, d_in], the massive ones left out; it resumes in its folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from machine import load_warning, machine_line
from numpy.typing import NDArray
from ratios import Figure, report
from sizes import Sizes

from probewire.analysis.sae.model.configs import TrainConfig, import_sae_lens
from probewire.analysis.sae.seeds.adaptive import FLOOR, AdaptiveL0, adaptive_l0
from probewire.analysis.sae.seeds.cells import Condition
from probewire.analysis.sae.seeds.controls import PUBLISHED, random_dictionaries
from probewire.analysis.sae.seeds.matched import ControlledStability, matched_controls
from probewire.analysis.sae.seeds.stability import best_matches, stability
from probewire.analysis.sae.seeds.sweep_plot import sweep_plot
from probewire.analysis.sae.training.array_trainer import ArrayTrainer

__all__ = ["ON_ARRAY", "ON_ARRAY_QUICK", "StabilitySizes", "on_activations", "sae_stability"]

Rows = NDArray[Any]


@dataclass(frozen=True, slots=True)
class StabilitySizes:
    """How much is trained."""

    d_sae: int
    ks: tuple[int, ...]
    fixed_k: int
    n_seeds: int
    epochs: int
    n_final_seeds: int
    final_epochs: int
    rows: int
    batch_size: int = 1024
    lr: float = 1e-3
    floor: float = FLOOR


PLANTED = StabilitySizes(64, (2, 4, 8, 16, 24), 24, 5, 10, 8, 16, rows=12_000, batch_size=256, lr=3e-3)
PLANTED_QUICK = replace(
    PLANTED, ks=(4, 16), fixed_k=16, n_seeds=4, epochs=2, n_final_seeds=4, final_epochs=3, rows=4000, floor=-1.0
)
ON_ARRAY = StabilitySizes(1152, (4, 8, 12, 16, 24, 32, 48, 64), 32, 5, 25, 8, 40, rows=16_000)
"""k, seeds and epochs as HUSAI's search has them: about fifty minutes on two cores."""
ON_ARRAY_SMALL = replace(ON_ARRAY, d_sae=576, ks=(8, 16, 32, 64), n_seeds=4, epochs=8, n_final_seeds=5, final_epochs=12)
"""Five to nine minutes."""
ON_ARRAY_QUICK = replace(
    ON_ARRAY, ks=(8, 32), n_seeds=4, epochs=1, n_final_seeds=4, final_epochs=2, rows=4000, floor=-1.0
)
"""So short that nothing is learnt, hence no floor."""


def sae_stability(sizes: Sizes) -> list[Figure]:
    """What needs no model: the figures of HUSAI's log, and data whose dictionary is known."""
    own = PLANTED if sizes.analysis_rounds > 1 else PLANTED_QUICK
    rows, dictionary = _planted(own.rows, d_in=32, n_features=48, firing=0.05)
    with tempfile.TemporaryDirectory() as folder:
        return [*_published(), *_recovered(own, rows, dictionary), *on_activations(rows, folder, own, name="planted")]


def on_activations(
    activations: Rows, folder: str | Path, sizes: StabilitySizes = ON_ARRAY, *, name: str = "activations"
) -> list[Figure]:
    """Adaptive L0, then matched controls at the k that it chose, over activations [row, d_in] of any origin.

    Writes sweep.png, adaptive.json and controls.md into `folder`, and resumes there. The first `sizes.rows` rows are
    taken. Intervals are by the jackknife, which is honest for few seeds; those of the seed bootstrap stand in the JSON.
    """
    folder, rows = Path(folder), np.asarray(activations)[: sizes.rows]
    template = TrainConfig(
        architecture="topk", d_sae=sizes.d_sae, k=1, steps=1, batch_size=sizes.batch_size, lr=sizes.lr
    )
    trainer = ArrayTrainer(rows, template)
    _announce(trainer, sizes)
    found = adaptive_l0(
        trainer,
        d_sae=sizes.d_sae,
        fixed_k=sizes.fixed_k,
        ks=sizes.ks,
        floor=sizes.floor,
        seeds=range(sizes.n_seeds),
        epochs=sizes.epochs,
        final_seeds=range(100, 100 + sizes.n_final_seeds),
        final_epochs=sizes.final_epochs,
        folder=folder / "adaptive",
        identity=trainer.identity,
        method="jackknife",
    )
    print(f"\n{found.search.table()}\n\n{found.conclusion}\n", flush=True)
    controlled = matched_controls(
        rows,
        lambda given: ArrayTrainer(given, template),
        Condition(found.chosen.condition.k, sizes.d_sae, sizes.epochs),
        range(sizes.n_seeds),
        folder=folder / "controls",
        method="jackknife",
    )
    print(f"{controlled.table()}\n", flush=True)
    _write(folder, found, controlled, name, rows.shape[1], sizes)
    return [*_adaptive_figures(found, name), *_control_figures(controlled, name)]


def _published() -> list[Figure]:
    figures: list[Figure] = []
    for control in PUBLISHED:
        mean = stability(random_dictionaries(control.d_in, control.d_sae, control.seeds), progress=False).mean
        digits = len(control.pwmcc.partition(".")[2])
        figures.append(
            Figure(
                f"random dictionaries {control.d_in} → {control.d_sae}, {len(control.seeds)} seeds: "
                "PWMCC, difference to the published one in units of its last digit",
                (abs(round(mean, digits) - float(control.pwmcc)) * 10**digits,),
                0.01,
                at_most=True,
                unit="digits",
                behind=f"{mean:.8f} / {control.pwmcc}",
            )
        )
    return figures


def _recovered(sizes: StabilitySizes, rows: Rows, dictionary: Rows) -> list[Figure]:
    template = TrainConfig(architecture="topk", d_sae=1, k=1, steps=1, batch_size=sizes.batch_size, lr=sizes.lr)
    trainer = ArrayTrainer(rows, template)
    least = list[float]()
    means = list[float]()
    for seed in range(3):
        trained = trainer(Condition(4, sizes.d_sae, 2 * sizes.final_epochs), seed)
        found = best_matches(dictionary, np.asarray(trained.decoder))[0]
        least.append(float(found.min()))
        means.append(float(found.mean()))
    what = f"planted dictionary of {len(dictionary)} in {rows.shape[1]} dimensions, d_sae {sizes.d_sae}, k 4, 3 seeds"
    return [
        Figure(f"{what}: mean cosine of a feature to its best latent", tuple(means), 0.95, unit="cos"),
        Figure(f"{what}: the worst feature", tuple(least), 0.95, unit="cos"),
    ]


def _adaptive_figures(found: AdaptiveL0, name: str) -> list[Figure]:
    chosen, fixed = found.adaptive, found.fixed
    figures = [
        Figure(
            f"{name}: PWMCC at the adaptive k {chosen.condition.k}, lower bound over random dictionaries",
            (chosen.comparison.lcb,),
            0.0,
            unit="PWMCC",
            behind=f"{chosen.comparison.trained} / {chosen.comparison.control}",
        )
    ]
    if found.gain is not None:
        figures.append(
            Figure(
                f"{name}: PWMCC, adaptive k {chosen.condition.k} − fixed k {fixed.condition.k}, low … mean … high",
                (found.gain.low, found.gain.mean, found.gain.high),
                unit="PWMCC",
                behind=f"{chosen.stability.mean:.4f} / {fixed.stability.mean:.4f}",
                note=found.conclusion,
            )
        )
    return figures


def _control_figures(found: ControlledStability, name: str) -> list[Figure]:
    figures: list[Figure] = []
    for control, gap in found.differences.items():
        row = found.controls.get(control)
        mean = found.trained.random.mean if row is None else row.stability.mean
        figures.append(
            Figure(
                f"{name}: PWMCC, trained at k {found.trained.condition.k} − {control}, low … mean … high",
                (gap.low, gap.mean, gap.high),
                unit="PWMCC",
                behind=f"{found.trained.stability.mean:.4f} / {mean:.4f}",
            )
        )
    return figures


def _write(
    folder: Path, found: AdaptiveL0, controlled: ControlledStability, name: str, d_in: int, sizes: StabilitySizes
) -> None:
    how = (
        f"{name}: {d_in} → {sizes.d_sae} latents, {sizes.n_seeds} seeds, {sizes.epochs} epochs of "
        f"{int(0.9 * sizes.rows):,} rows; chosen: k {found.chosen.condition.k}"
    )
    if len(sizes.ks) > 1:
        sweep_plot(
            found.search,
            floor=found.floor,
            what="Stability by number of active latents",
            how=how,
            path=folder / "sweep.png",
        )
    (folder / "adaptive.json").write_text(
        json.dumps({**found.to_json(), "by_seed_bootstrap": _bootstrapped(found)}, indent=1, allow_nan=False)
    )
    (folder / "controls.md").write_text(controlled.table() + "\n")


def _bootstrapped(found: AdaptiveL0) -> dict[str, list[float]]:
    rows = {f"k {row.condition.k}, {row.condition.epochs} epochs": row for row in (*found.search.rows, found.adaptive)}
    intervals = {name: row.stability.interval("seeds") for name, row in rows.items()}
    return {name: [interval.mean, interval.low, interval.high] for name, interval in intervals.items()}


def _announce(trainer: ArrayTrainer, sizes: StabilitySizes) -> None:
    """How long it will take, from one short training."""
    condition = Condition(sizes.fixed_k, sizes.d_sae, 1)
    trainer(condition, 0)
    start = time.perf_counter()
    trainer(condition, 0)
    epoch = time.perf_counter() - start
    epochs = (len(sizes.ks) + 3) * sizes.n_seeds * sizes.epochs + 2 * sizes.n_final_seeds * sizes.final_epochs
    print(f"    {epoch:.2f} s an epoch, {epochs} epochs: about {epoch * epochs / 60:.0f} min", flush=True)


def _planted(n_rows: int, *, d_in: int, n_features: int, firing: float) -> tuple[Rows, Rows]:
    """Rows that sae_lens.synthetic makes of a dictionary, and the dictionary."""
    import_sae_lens()
    synthetic: Any = import_module("sae_lens.synthetic")
    torch: Any = import_module("torch")
    torch.manual_seed(0)
    dictionary = synthetic.FeatureDictionary(n_features, d_in)
    features = synthetic.ActivationGenerator(n_features, firing, std_firing_magnitudes=0.3)
    with torch.no_grad():
        return dictionary(features.sample(n_rows)).numpy(), dictionary.feature_vectors.numpy().copy()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it on an array of activations and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations", type=Path, required=True, help=".npy, [row, d_in], massive ones left out")
    parser.add_argument("--out", type=Path, required=True, help="a folder; what is finished there is not trained again")
    parser.add_argument(
        "--d-sae", type=int, default=0, help=f"default {ON_ARRAY.d_sae}; {ON_ARRAY_SMALL.d_sae} when small"
    )
    parser.add_argument("--rows", type=int, default=0, help=f"how many (default {ON_ARRAY.rows})")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="fewer latents, seeds and epochs")
    size.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not what it finds")
    args = parser.parse_args(arguments)
    sizes = ON_ARRAY_QUICK if args.quick else ON_ARRAY_SMALL if args.small else ON_ARRAY
    sizes = replace(sizes, d_sae=args.d_sae or sizes.d_sae, rows=args.rows or sizes.rows)
    activations = np.load(args.activations, mmap_mode="r", allow_pickle=False)
    args.out.mkdir(parents=True, exist_ok=True)
    figures = on_activations(activations, args.out, sizes, name=args.activations.stem)
    print("\n".join(filter(None, (machine_line(), load_warning()))))
    print(report(f"Stability on {args.activations.stem}, {sizes}", figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
