"""`probewire variant diff | compose | merge | convert`: variants as folders, without a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...analysis.variants import Conflict, compose, diff
from ...backends.checkpoints import resolve_model
from ...backends.checkpoints.variants import difference, merge_variant
from ...protos.errors import InvalidArgument
from ...protos.variants.variant import Variant
from ..pull import progress_bars
from .action import Action

__all__ = ["ACTIONS"]

DTYPES = ("float32", "float16", "bfloat16")
MAX_SHOWN = 12


def _diff_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, help="folder of a variant or adapter")
    parser.add_argument("second", type=Path, help="another, of the same model")


def _diff(args: argparse.Namespace) -> int:
    one, other = Variant.load(args.first), Variant.load(args.second)
    print(f"1  {one!r}\n2  {other!r}")
    if one.hash == other.hash:
        print("the same content")
        return 0
    for label, mine, its in (("only in 1", one, other), ("only in 2", other, one)):
        if names := sorted(mine.deltas.keys() - its.deltas.keys()):
            print(
                f"{label}: {', '.join(names[:MAX_SHOWN])}{f', … {len(names) - MAX_SHOWN} more' if len(names) > MAX_SHOWN else ''}"
            )
    _print_conflicts(diff(one, other))
    return 0


def _compose_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variants", nargs="+", type=Path, metavar="VARIANT", help="folders, of one model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--how", choices=("sum", "priority", "orthogonal", "ties"), default="sum", help="(%(default)s)")
    parser.add_argument("--scale", type=float, nargs="+", metavar="S", help="one for each variant (1)")
    parser.add_argument("--max-rank", type=int, metavar="R", help="compress every delta to this rank")
    parser.add_argument(
        "--density", type=float, default=0.2, help="ties: part of the entries that is kept (%(default)s)"
    )
    parser.add_argument("--strict", action="store_true", help="refuse hooks that set the same part of a site")
    parser.add_argument("--name", default="", help="of the new one")


def _compose(args: argparse.Namespace) -> int:
    parts = [Variant.load(folder) for folder in args.variants]
    made = compose(
        parts,
        args.how,
        scales=args.scale,
        max_rank=args.max_rank,
        density=args.density,
        strict=args.strict,
        name=args.name,
    )
    _print_conflicts(made.conflicts)
    for warning in made.warnings:
        print(f"warning  {warning}")
    if made.energy_lost:
        worst = max(made.energy_lost, key=lambda name: made.energy_lost[name])
        print(f"compression leaves out {made.energy_lost[worst]:.2%} of ‖ΔW‖² at most (at {worst})")
    print(f"{made.variant!r}\nwritten to {made.variant.save(args.out)}")
    return 0


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", help="folder or name of the model that the variant was made for")
    parser.add_argument("variant", type=Path, help="its folder")
    parser.add_argument("out", type=Path, help="checkpoint folder to write, new or empty")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (%(default)s)")
    parser.add_argument("--drop-hooks", action="store_true", help="leave the variant's hooks out")
    parser.add_argument("--rebase", action="store_true", help="onto another model than it was made for")
    parser.add_argument("--force", action="store_true", help="also where rounding takes more than a tenth of a change")


def _merge(args: argparse.Namespace) -> int:
    variant = Variant.load(args.variant)
    with progress_bars() as report:
        made = merge_variant(
            resolve_model(args.base).folder,
            variant,
            args.out,
            dtype=args.dtype,
            drop_hooks=args.drop_hooks,
            rebase=args.rebase,
            force=args.force,
            progress=report,
        )
    worst = max(made.lost, key=lambda name: made.lost[name])
    print(f"merged into {made.folder}")
    print(f"rounding to {args.dtype} took {made.lost[worst]:.2e} of ‖ΔW‖² at most (at {worst})")
    return 0


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", type=Path, help="folder of ours, of PEFT or of mlx-lm")
    parser.add_argument(
        "--from-models", nargs=2, metavar=("BASE", "TUNED"), help="what a tuned model is more than its base"
    )
    parser.add_argument(
        "--energy", type=float, default=0.99, help="--from-models: of each ‖ΔW‖² that is kept (%(default)s)"
    )
    parser.add_argument(
        "--drop", action="store_true", help="--from-models: leave out what no variant holds, such as norms"
    )
    parser.add_argument("--to", choices=("probewire", "peft", "mlx-lm"), default="probewire", help="(%(default)s)")
    parser.add_argument("--drop-hooks", action="store_true", help="--to peft or mlx-lm: leave hooks out")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")


def _convert(args: argparse.Namespace) -> int:
    if (args.source is None) == (args.from_models is None):
        raise InvalidArgument("give exactly one of a source folder and --from-models BASE TUNED")
    variant = Variant.load(args.source) if args.source else _from_models(args)
    if args.to == "probewire":
        folder = variant.save(args.out)
    else:
        folder = variant.export(args.out, args.to, drop_hooks=args.drop_hooks)
    print(f"{variant!r}\nwritten to {folder}")
    return 0


def _from_models(args: argparse.Namespace) -> Variant:
    base, tuned = (resolve_model(name).folder for name in args.from_models)
    found = difference(base, tuned, energy=args.energy, drop=args.drop)
    if found.lost:
        worst = max(found.lost, key=lambda name: found.lost[name])
        print(f"{len(found.lost)} weights; at most {found.lost[worst]:.2%} of ‖ΔW‖² is left out (at {worst})")
    for name, part in found.left.items():
        print(f"left as the base has it: {name}, which differs by {part:.2%}")
    return found.variant


def _print_conflicts(found: tuple[Conflict, ...]) -> None:
    if not found:
        print("they change no weight together")
        return
    print(f"{'weight':<14} {'cosine':>8} {'inputs':>8} {'outputs':>8}")
    for one in sorted(found, key=lambda item: -abs(item.cosine))[:MAX_SHOWN]:
        print(f"{one.weight:<14} {one.cosine:>+8.3f} {one.inputs:>8.3f} {one.outputs:>8.3f}")
    if len(found) > MAX_SHOWN:
        print(f"… {len(found) - MAX_SHOWN} more")


ACTIONS = (
    Action("diff", "compare two variants, weight by weight", _diff_arguments, _diff),
    Action(
        "compose", "put several into one, and say where they get into each other's way", _compose_arguments, _compose
    ),
    Action("merge", "write base and variant as one checkpoint", _merge_arguments, _merge),
    Action("convert", "from or to PEFT and mlx-lm, or from a tuned model", _convert_arguments, _convert),
)
