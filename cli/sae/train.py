"""`probewire sae train`: one SAE or several, on a store or straight from a server."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table

from ...protos.errors import InvalidArgument
from ..connection import add_connection_arguments, connected
from .texts import add_text_arguments, add_window_arguments, corpus_of

if TYPE_CHECKING:
    from ...analysis.sae.model.configs import TrainConfig
    from ...analysis.sae.training.training import TrainedSae

__all__ = ["add_arguments", "run"]

WIDE = 160
"""Columns where no terminal says how many there are, so that a table in a file is never folded."""

ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "gated", "standard")
EPILOG = """\
  probewire sae train --store acts --out sae --arch topk --d-sae 2304 --k 32 --steps 700
  probewire sae train --live --site resid_post.15 --texts all.jsonl --out sae --arch batchtopk --d-sae 2304 --k 32 --steps 700
  probewire sae train --store acts --out saes --arch topk --d-sae 2304 --k 32 --steps 700 --seed 0 1 2

Given again, the same command goes on from the last checkpoint, to the same weights; a finished run is only shown.
Several seeds, or the SAEs of --configs, are trained on one stream, each into a folder of its name.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire sae train` takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="becomes an SAE as sae-lens saves it")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--store", type=Path, metavar="FOLDER", help="activations that `probewire sae collect` stored")
    source.add_argument("--live", action="store_true", help="straight from a server: give --site and --texts")
    _add_sae_arguments(parser)
    _add_training_arguments(parser)
    live = parser.add_argument_group("with --live")
    live.add_argument("--site", help="where to read: resid_post.15, mlp_out.3, …")
    add_window_arguments(parser)
    add_text_arguments(parser, needed=False)
    add_connection_arguments(parser)


def _add_sae_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the SAE")
    group.add_argument("--arch", choices=ARCHITECTURES, default="topk", help="%(default)s by default")
    group.add_argument("--d-sae", type=int, metavar="N", help="how many latents")
    group.add_argument("--k", type=float, help="topk, batchtopk, matryoshka: latents active a row")
    group.add_argument("--l1", type=float, metavar="X", help="gated, standard: weight of the L1 loss")
    group.add_argument("--l0", type=float, metavar="X", help="jumprelu: weight of the L0 loss")
    group.add_argument("--sparsity-warm-up", type=int, default=0, metavar="STEPS", help="over which that weight grows")
    group.add_argument("--aux", type=float, metavar="X", help="with --k: weight of the loss that revives the dead (1)")
    group.add_argument(
        "--widths", type=int, nargs="+", metavar="N", help="matryoshka: of the nested SAEs, up to --d-sae"
    )
    group.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="any other field of sae-lens's config"
    )
    group.add_argument(
        "--configs", type=Path, metavar="FILE", help='JSON, {"NAME": {"k": 64, "lr": 1e-4, …}}: an SAE a name, which '
        "differs from the options in these fields of TrainConfig"
    )  # fmt: skip


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, metavar="N", help="batches")
    length.add_argument("--epochs", type=float, metavar="X", help="passes over the store")
    group.add_argument("--batch-size", type=int, default=1024, metavar="N", help="rows a step (%(default)s)")
    group.add_argument("--lr", type=float, default=3e-4, metavar="X", help="Adam's learning rate (%(default)s)")
    group.add_argument("--lr-schedule", default="constant", help="constant or cosineannealing (%(default)s)")
    group.add_argument("--lr-warm-up", type=int, default=0, metavar="STEPS")
    group.add_argument("--lr-decay", type=int, default=0, metavar="STEPS", help="at the end, down to 0")
    group.add_argument(
        "--normalise",
        default="none",
        metavar="HOW",
        help="none, expected_average_only_in or covariance_whitening; folded into the weights at the end (%(default)s)",
    )
    group.add_argument("--seed", type=int, nargs="+", default=[0], help="of the weights; several train an SAE each")
    group.add_argument(
        "--data-seed", type=int, default=0, metavar="SEED", help="of the order of the rows (%(default)s)"
    )
    group.add_argument("--checkpoints", type=int, default=5, metavar="N", help="on the way (%(default)s)")
    group.add_argument("--keep-checkpoints", action="store_true", help="all of them, also after the end")
    group.add_argument("--device", default="cpu", help="torch's name of it (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Train, and print how it ended."""
    # Before torch is loaded: its threads spin after each step, while a server on the same cores has the next rows to compute.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    from ...analysis.sae.training.several import train_several
    from ...analysis.sae.training.training import train

    with _batches(args) as (batches, steps):
        configs = _configs(args, steps)
        if args.configs is None and len(configs) == 1:
            [config] = configs.values()
            trained = {args.out.name: train(batches, config, args.out, keep_checkpoints=args.keep_checkpoints)}
        else:
            trained = train_several(batches, configs, args.out, keep_checkpoints=args.keep_checkpoints)
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(_table(trained))
    print(f"explained variance, L0 and loss are of the last batch of training; curves: {args.out / 'curves.png'}")
    return 0


@contextmanager
def _batches(args: argparse.Namespace) -> Generator[tuple[Any, int]]:
    """The batches, and how many steps to take."""
    if args.store is not None:
        from ...analysis.sae.data.store import ActivationStore

        if args.site or args.texts:
            raise InvalidArgument("--site and --texts are for --live; a store knows its own")
        store = ActivationStore.open(args.store)
        steps = args.steps or math.ceil(args.epochs * store.n_tokens / args.batch_size)
        with store.batches(args.batch_size, seed=args.data_seed) as batches:
            yield batches, steps
        return
    from ...analysis.sae.data.live import LiveBatches

    if not args.site or not args.texts:
        raise InvalidArgument("--live needs --site and --texts")
    if args.steps is None:
        raise InvalidArgument("--live reads no corpus to its end first, so it has no --epochs; give --steps")
    with (
        connected(args) as client,
        LiveBatches(
            client,
            corpus_of(args),
            args.site,
            args.batch_size,
            seed=args.data_seed,
            context=args.context,
            pack=args.pack,
            model=args.model,
        ) as batches,
    ):
        yield batches, args.steps


def _configs(args: argparse.Namespace, steps: int) -> dict[str, TrainConfig]:
    """One a seed, and of each name in --configs one a seed."""
    from ...analysis.sae.model.configs import TrainConfig

    named: dict[str, dict[str, Any]] = {"": {}} if args.configs is None else _read_configs(args.configs)
    found: dict[str, TrainConfig] = {}
    for name, fields in named.items():
        for seed in args.seed:
            parts = [name, f"seed{seed}" if len(args.seed) > 1 else ""]
            own = {**_common(args, steps), "seed": seed, **fields}
            if own["d_sae"] is None:
                raise InvalidArgument("give --d-sae, or d_sae for each SAE in --configs")
            found["-".join(filter(None, parts)) or "sae"] = TrainConfig.from_dict(own)
    if len(found) < len(named) * len(args.seed):
        raise InvalidArgument(f"--seed {args.seed}: each only once")
    return found


def _common(args: argparse.Namespace, steps: int) -> dict[str, Any]:
    return {
        "architecture": args.arch,
        "d_sae": args.d_sae,
        "steps": steps,
        "batch_size": args.batch_size,
        "k": args.k,
        "l1_coefficient": args.l1,
        "l0_coefficient": args.l0,
        "sparsity_warm_up_steps": args.sparsity_warm_up,
        "aux_coefficient": args.aux,
        "matryoshka_widths": args.widths,
        "lr": args.lr,
        "lr_schedule": args.lr_schedule,
        "lr_warm_up_steps": args.lr_warm_up,
        "lr_decay_steps": args.lr_decay,
        "normalisation": args.normalise,
        "checkpoints": args.checkpoints,
        "device": args.device,
        "options": dict(map(_option, args.option)),
    }


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is some, and as text where not."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidArgument(f"--option {text!r}: write NAME=VALUE, such as jumprelu_bandwidth=0.1")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _read_configs(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read --configs {path}: {error}") from None
    entries = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    if not entries or not all(name and isinstance(fields, dict) for name, fields in entries.items()):
        raise InvalidArgument(f'--configs {path} holds no {{"NAME": {{…}}}}; see `probewire sae train --help`')
    return entries


def _table(trained: Mapping[str, TrainedSae]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("sae", "trained as", "saved as"):
        table.add_column(name, overflow="fold")
    for name in ("d_sae", "steps", "explained variance", "L0", "dead", "loss", "seconds"):
        table.add_column(name, justify="right")
    for name, one in trained.items():
        final = one.run.final
        dead = final["dead"]
        table.add_row(
            name,
            one.run.config.architecture,
            one.sae.architecture,
            str(one.sae.d_sae),
            str(one.run.steps),
            f"{final['explained_variance'] or math.nan:.4f}",
            f"{final['l0'] or 0:.1f}",
            "—" if dead is None else f"{100 * dead:.1f} %",
            _short(final["loss"] or math.nan),
            f"{one.run.wall_seconds:.0f}",
        )
    return table


def _short(loss: float) -> str:
    return f"{loss:,.0f}" if 1000 <= loss < 1e7 else f"{loss:.4g}"  # powers of ten are cut off in narrow terminals
