"""`probewire convert`: write a packed, pickled or adapted checkpoint as the plain folder that it means."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..backends.checkpoints import convert_model
from ..protos.errors import ProbewireError
from .pull import cache_dir_from, progress_bars

__all__ = ["add_arguments", "run"]

DTYPES = ("auto", "float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire convert` takes."""
    parser.add_argument(
        "source",
        help="a local folder or a Hugging Face id: GPTQ, AWQ, compressed-tensors, pytorch_model.bin, or a LoRA adapter",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="folder to write, new or empty (default: one in the cache, as serve uses)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="of the weights written (default: what the checkpoint's config says)",
    )
    parser.add_argument(
        "--base", default="", help="folder or Hugging Face id of an adapter's base, in place of the one that it names"
    )
    parser.add_argument("--revision", default=None, help="branch, tag or commit of a Hugging Face model")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=None,
        help="the cache (default: $PROBEWIRE_CACHE, else the user's cache folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, then say where the folder lies. The exit status: 0, 1 for an error, 130 when interrupted."""
    try:
        with progress_bars() as report:
            made = convert_model(
                args.source,
                args.out,
                dtype=args.dtype,
                base=args.base,
                revision=args.revision,
                cache_dir=cache_dir_from(args.cache_dir),
                progress=report,
            )
    except ProbewireError as error:
        print(f"probewire convert: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("probewire convert: stopped; nothing was left behind", file=sys.stderr)
        return 130
    print(f"{made.model_id} is converted in {made.folder}")
    print(f"model hash {made.model_hash}")
    return 0
