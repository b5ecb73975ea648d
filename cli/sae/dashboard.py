"""`probewire sae dashboard`: one page of an SAE's latents."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...protos.errors import InvalidArgument
from ..connection import add_connection_arguments, connected
from .texts import add_text_arguments, corpus_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire sae dashboard` takes."""
    parser.epilog = "The page is one file that needs no network."
    parser.add_argument(
        "sae",
        metavar="SAE",
        help="a folder in the sae-lens format, or the name of an SAE that the server has loaded from a folder of this machine",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="HTML", help="the page")
    parser.add_argument("--latents", type=int, nargs="+", metavar="ID", help="those on the page (all)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="read no more of the texts")
    parser.add_argument(
        "--examples", type=int, default=8, metavar="N", help="strongest ones of each latent (%(default)s)"
    )
    parser.add_argument("--context", type=int, metavar="N", help="tokens of an input (the usual number)")
    parser.add_argument("--title", default="", help="of the page")
    parser.add_argument("--site", default="", help="where the SAE reads, when its config does not say")
    parser.add_argument("--model", default="", help="which of the served models")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled examples (%(default)s)")
    steering = parser.add_argument_group("steering")
    steering.add_argument(
        "--steer", type=int, default=0, metavar="N", help="show texts with a latent raised, of N latents"
    )
    steering.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="that they begin with; repeatable"
    )
    add_text_arguments(parser)
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Read the texts, write the page."""
    from ...analysis.sae.dashboard.dashboard import Steering, dashboard
    from ...analysis.sae.latents.stream import CONTEXT

    if bool(args.steer) != bool(args.prompt):
        raise InvalidArgument("--steer N and --prompt TEXT go together")
    with connected(args) as client:
        page = dashboard(
            client,
            args.sae,
            corpus_of(args),
            args.out,
            latents=args.latents,
            n_examples=args.examples,
            context=CONTEXT if args.context is None else args.context,
            max_tokens=args.max_tokens,
            steering=Steering(args.prompt, args.steer) if args.steer else None,
            title=args.title,
            site=args.site,
            model=args.model,
            seed=args.seed,
        )
    print(page)
    return 0
