"""`probewire sae collect`: activations of a corpus into a store on the disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..connection import add_connection_arguments, connected
from .texts import add_text_arguments, add_window_arguments, corpus_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire sae collect` takes."""
    parser.epilog = "Given again, the same command goes on where it was stopped. A larger --tokens adds to a store."
    parser.add_argument("--site", required=True, help="where to read: resid_post.15, mlp_out.3, …")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the store")
    parser.add_argument("--tokens", type=int, metavar="N", help="rows to keep (all that the texts have)")
    parser.add_argument("--dtype", default="auto", help="of the rows on the disk (as the model computes them)")
    add_window_arguments(parser)
    add_text_arguments(parser)
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Collect, and say what was left out."""
    from ...analysis.sae.data.collect import collect

    with connected(args) as client:
        store = collect(
            client,
            corpus_of(args),
            args.site,
            args.out,
            context=args.context,
            pack=args.pack,
            n_tokens=args.tokens,
            dtype=args.dtype,
            model=args.model,
        )
    statistics = store.manifest["statistics"]
    dropped = ", ".join(f"{name} {n:,}" for name, n in store.manifest["dropped"].items()) or "none"
    print(f"{store.folder}: {store.n_tokens:,} rows of {store.site}, {store.d_in} wide, {store.dtype}")
    print(f"left out: {dropped}")
    print(f"mean norm {statistics['mean_norm']:.4g}, total variance {statistics['total_variance']:.4g}")
    return 0
