"""`probewire sae sweep`: stability over k and d_sae, or the k whose dictionaries agree most."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...protos.errors import InvalidArgument

if TYPE_CHECKING:
    from ...analysis.sae.training.array_trainer import ArrayTrainer

__all__ = ["add_arguments", "run"]

ROWS = 200_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire sae sweep` takes."""
    parser.epilog = (
        "Each finished training is kept in --out: given again, the same command goes on where it was stopped."
    )
    parser.add_argument("--store", type=Path, required=True, metavar="FOLDER", help="activations, held in memory")
    parser.add_argument(
        "--rows",
        type=int,
        default=ROWS,
        metavar="N",
        help="of the store, the first ones (%(default)s); time is rows × epochs × trainings",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--arch", choices=("topk", "batchtopk", "matryoshka"), default="topk", help="(%(default)s)")
    parser.add_argument("--k", type=int, nargs="+", metavar="N", help="latents active a row")
    parser.add_argument("--d-sae", type=int, nargs="+", required=True, metavar="N", help="latents")
    parser.add_argument(
        "--seed",
        type=int,
        nargs="+",
        default=list(range(5)),
        help="of the trainings: 4 or more, 3 with --method jackknife (0 1 2 3 4)",
    )
    parser.add_argument("--epochs", type=int, default=25, metavar="N", help="passes over the rows (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=1024, metavar="N", help="rows a step (%(default)s)")
    parser.add_argument("--lr", type=float, default=3e-4, metavar="X", help="Adam's learning rate (%(default)s)")
    parser.add_argument(
        "--method", choices=("seeds", "jackknife", "pairs"), default="seeds", help="of the intervals (%(default)s)"
    )
    adaptive = parser.add_argument_group("adaptive L0: choose k, and compare it with a fixed one on fresh seeds")
    adaptive.add_argument("--fixed-k", type=int, metavar="N", help="choose among --k, and compare with this one")
    adaptive.add_argument(
        "--floor", type=float, default=0.2, metavar="EV", help="least explained variance (%(default)s)"
    )
    adaptive.add_argument("--final-seed", type=int, nargs="+", default=list(range(100, 108)), help="(100 … 107)")
    adaptive.add_argument("--final-epochs", type=int, default=40, metavar="N", help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Train and compare; prints the table and, of an adaptive run, the conclusion."""
    from ...analysis.sae.seeds.adaptive import KS, adaptive_l0
    from ...analysis.sae.seeds.sweep_plot import sweep_plot
    from ...analysis.sae.seeds.sweeps import conditions, run_sweep

    if args.fixed_k is not None and len(args.d_sae) != 1:
        raise InvalidArgument(f"--fixed-k compares at one --d-sae, got {args.d_sae}")
    if args.k is None and args.fixed_k is None:
        raise InvalidArgument("give --k, or --fixed-k to choose among the usual ones")
    ks: list[int] = args.k or [k for k in KS if k <= args.d_sae[0]]
    trainer = _trainer(args, ks)
    options: dict[str, Any] = {"folder": args.out, "identity": trainer.identity, "method": args.method}
    if args.fixed_k is None:
        sweep = run_sweep(trainer, conditions(ks, args.d_sae, args.epochs), args.seed, **options)
        found, conclusion = sweep.to_json(), ""
    else:
        adaptive = adaptive_l0(
            trainer,
            d_sae=args.d_sae[0],
            fixed_k=args.fixed_k,
            ks=ks,
            floor=args.floor,
            seeds=args.seed,
            epochs=args.epochs,
            final_seeds=args.final_seed,
            final_epochs=args.final_epochs,
            **options,
        )
        sweep, found, conclusion = adaptive.search, adaptive.to_json(), adaptive.conclusion
    print(sweep.table())
    if conclusion:
        print(f"\n{conclusion}")
    (args.out / "sweep.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    along = "k" if len(ks) > 1 else "d_sae"
    if len(sweep.rows) > 1:
        floor = args.floor if conclusion else None
        sweep_plot(sweep, along=along, floor=floor, what="Stability across seeds", path=args.out / "sweep.png")
    return 0


def _trainer(args: argparse.Namespace, ks: list[int]) -> ArrayTrainer:
    from ...analysis.sae.data.store import ActivationStore
    from ...analysis.sae.model.configs import TrainConfig
    from ...analysis.sae.training.array_trainer import ArrayTrainer

    if args.rows < 1:
        raise InvalidArgument(f"--rows is 1 or more, got {args.rows}")
    template = TrainConfig(
        architecture=args.arch, d_sae=args.d_sae[0], k=ks[0], steps=1, batch_size=args.batch_size, lr=args.lr
    )
    return ArrayTrainer(ActivationStore.open(args.store).array(0, args.rows), template)
