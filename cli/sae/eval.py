"""`probewire sae eval`: score SAEs on held-out texts, beside one that was never trained."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from ...protos.errors import InvalidArgument
from ..connection import add_connection_arguments, connected
from .texts import add_text_arguments, add_window_arguments, corpus_of

__all__ = ["add_arguments", "run"]

EVALUATIONS = ("core", "sparse_probing", "tpp", "scr", "absorption")
SPARES = ("none", "first", "massive")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire sae eval` takes."""
    parser.epilog = "An SAE that was never trained is refused: its figures look like results."
    parser.add_argument("saes", nargs="+", type=Path, metavar="SAE", help="folders in the sae-lens format, of one site")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write scorecard.json, .md and .png there too")
    parser.add_argument(
        "--evaluations",
        nargs="+",
        choices=EVALUATIONS,
        default=["core"],
        help="core by default: reconstruction, L0, losses",
    )
    parser.add_argument("--contexts", type=int, default=64, metavar="N", help="inputs to score on (%(default)s)")
    parser.add_argument("--site", default="", help="where the SAEs read, when their configs do not say")
    parser.add_argument(
        "--spare", choices=SPARES, default="none", help="positions that keep the model's activation in the losses"
    )
    parser.add_argument("--no-control", action="store_true", help="leave out the SAE that was never trained")
    parser.add_argument("--allow-untrained", action="store_true", help="score SAEs that were never trained")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    add_window_arguments(parser)
    add_text_arguments(parser)
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Score, and print the table."""
    from ...analysis.sae.data.contexts import Contexts
    from ...analysis.sae.scoring.scorecard import score

    if args.contexts < 1:
        raise InvalidArgument(f"--contexts is 1 or more, got {args.contexts}")
    with connected(args) as client:
        found = Contexts(client, corpus_of(args), args.context, args.pack, args.model).read()
        card = score(
            client,
            _named(args.saes),
            [context.token_ids.tolist() for context in itertools.islice(found, args.contexts)],
            evaluations=args.evaluations,
            site=args.site,
            control=not args.no_control,
            spare=args.spare,
            context_length=args.context,
            allow_untrained=args.allow_untrained,
            seed=args.seed,
            model=args.model,
        )
    print(card.markdown())
    if args.out is not None:
        card.save(args.out)
    return 0


def _named(saes: list[Path]) -> dict[str, Path]:
    """By the folders' own names where these tell them apart, else by their paths."""
    short = {sae.resolve().name: sae for sae in saes}
    return short if len(short) == len(saes) else {str(sae): sae for sae in saes}
