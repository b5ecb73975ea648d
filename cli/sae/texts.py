"""Options of the actions that read a corpus through a server."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...protos.errors import InvalidArgument

if TYPE_CHECKING:
    from ...analysis.sae.data.corpus import Corpus

__all__ = ["TEXTS", "add_record_arguments", "add_text_arguments", "add_window_arguments", "corpus_of", "opened"]

TEXTS = "a .jsonl, .txt, .parquet or .arrow file, a folder of .txt files, or a saved Hugging Face dataset"
"""What a path of texts may be."""


def add_text_arguments(parser: argparse.ArgumentParser, *, needed: bool = True) -> None:
    """Declare which texts."""
    group = parser.add_argument_group("texts")
    group.add_argument("--texts", required=needed, metavar="PATH", help=TEXTS)
    group.add_argument(
        "--dataset", action="store_true", help="--texts is the name of a Hugging Face dataset, to be fetched"
    )
    add_record_arguments(group)
    group.add_argument(
        "--hold-out",
        type=float,
        metavar="SHARE",
        help="leave out this share of the documents, chosen by a hash of their text; --held-out of the same share reads them",
    )
    group.add_argument("--held-out", type=float, metavar="SHARE", help="only those")


def add_record_arguments(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]  it has no public name
    """Declare where records hold their texts."""
    group.add_argument("--field", default="text", help="of a record that holds its text (%(default)s)")
    group.add_argument("--split", default="train", help="of a dataset (%(default)s)")
    group.add_argument("--skip-empty", action="store_true", help="pass over empty documents instead of refusing them")


def add_window_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how texts become the model's inputs."""
    parser.add_argument("--context", type=int, default=128, metavar="N", help="tokens of an input (%(default)s)")
    parser.add_argument("--pack", action="store_true", help="fill inputs with several documents")
    parser.add_argument("--model", default="", help="which of the served models")


def corpus_of(args: argparse.Namespace) -> Corpus:
    """The corpus that the options name. Raises InvalidArgument or NotFound."""
    from ...analysis.sae.data import corpus

    if args.hold_out is not None and args.held_out is not None:
        raise InvalidArgument("--hold-out leaves out what --held-out reads; give one of them")
    if args.dataset:
        found = corpus.dataset(args.texts, args.field, split=args.split, skip_empty=args.skip_empty)
    else:
        found = opened(args.texts, args)
    if args.hold_out is not None:
        return found.split(args.hold_out)[0]
    return found if args.held_out is None else found.split(args.held_out)[1]


def opened(path: str, args: argparse.Namespace) -> Corpus:
    """The corpus at a path, read as the options of records say. Raises InvalidArgument or NotFound."""
    from ...analysis.sae.data import corpus

    return corpus.of(path, args.field, split=args.split, skip_empty=args.skip_empty)
