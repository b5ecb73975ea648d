"""`probewire convert`: write a packed, pickled or adapted checkpoint as the plain folder that it means; and look after those
in the cache."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ..backends.checkpoints import convert_model
from ..protos.errors import InvalidArgument, ProbewireError
from .converted import clean, list_converted, remove
from .pull import cache_dir_from, progress_bars

__all__ = ["add_arguments", "run"]

DTYPES = ("auto", "float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire convert` takes."""
    parser.add_argument(
        "source",
        nargs="?",
        default=None,
        help="a .gguf file, a local folder or a Hugging Face id: GGUF, GPTQ, AWQ, compressed-tensors, pytorch_model.bin, or a LoRA adapter",
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
        help="of the weights written (default: what the checkpoint's config says; float32 of a GGUF file)",
    )
    parser.add_argument(
        "--base",
        default="",
        help="folder, .gguf file or Hugging Face id of an adapter's base, in place of the one that it names",
    )
    parser.add_argument("--revision", default=None, help="branch, tag or commit of a Hugging Face model")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=None,
        help="the cache (default: $PROBEWIRE_CACHE, else the user's cache folder)",
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument(
        "--list", action="store_true", help="show what is converted in the cache: sizes, sources, last use"
    )
    kept.add_argument(
        "--clean",
        action="store_true",
        help="remove from the cache what was made of sources that are gone, and what interrupted conversions left",
    )
    kept.add_argument(
        "--remove",
        action="append",
        default=[],
        metavar="NAME",
        help="remove one folder from the cache, by its name in --list",
    )


def run(args: argparse.Namespace) -> int:
    """Convert, then say where the folder lies. The exit status: 0, 1 for an error, 130 when interrupted."""
    try:
        if args.list or args.clean or args.remove:
            print(_of_the_cache(args))
            return 0
        if args.source is None:
            raise InvalidArgument("name what to convert, or give --list, --clean or --remove NAME")
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
    written = report.stages & {"convert", "dequantise"}
    print(f"{made.model_id} {'is' if written else 'was already'} converted in {made.folder}")
    print(f"model hash {made.model_hash}")
    print(f"next:      {_next(args, made.folder)}")
    return 0


def _of_the_cache(args: argparse.Namespace) -> str:
    if args.source is not None or args.out is not None:
        raise InvalidArgument("--list, --clean and --remove are about the cache: leave the source and --out away")
    cache_dir = cache_dir_from(args.cache_dir)
    if args.list:
        return list_converted(cache_dir)
    return clean(cache_dir) if args.clean else remove(cache_dir, args.remove)


def _next(args: argparse.Namespace, folder: Path) -> str:
    """The command that serves it: by the name that was given, where serve finds the same under it."""
    if args.out is not None or args.base or args.dtype != "auto":
        return f"probewire serve {shlex.quote(str(folder))}"
    words = ["probewire", "serve", args.source]
    words += ["--revision", args.revision] if args.revision else []
    words += ["--cache-dir", str(args.cache_dir)] if args.cache_dir else []
    return shlex.join(words)
