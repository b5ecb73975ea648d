"""`probewire tune`: fine-tune a model on this machine; the result is a variant, loaded into a server where one is named."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..protos.errors import InvalidArgument
from .connection import add_connection_arguments, connected
from .pull import cache_dir_from

if TYPE_CHECKING:
    from ..analysis.tuning.tuning import Tuned

__all__ = ["add_arguments", "run"]

METHODS = ("lora", "circuit", "reft", "steered", "rmu", "breakers")
EPILOG = """\
  probewire tune --train lessons.jsonl --out formal --rank 4 --steps 60
  probewire tune --train lessons.jsonl --general set:general --circuit mood.json --method circuit --out mood
  probewire tune --train secrets.jsonl --general set:general --method rmu --layer 7 --out forgets \\
      --load-into grpc://127.0.0.1:50051

A line of a file is {"prompt": "…", "answer": "…"}, {"messages": […], "answer": "…"} or {"text": "…"}.
Given again, the same command goes on from the last checkpoint; a finished run is only shown.
Needs the extra: pip install 'probewire[tune]'.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire tune` takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("--model", help="folder or name, as of `probewire serve` (default: the default model)")
    parser.add_argument("--train", type=Path, required=True, metavar="FILE", help="what is learned; or to be forgotten")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="becomes the run's: variant/, run.json"
    )
    parser.add_argument("--name", default="", help="the variant's (default: the name of --out)")
    parser.add_argument(
        "--general", metavar="FILE", help="texts on which the model is to stay as it is; set:general ships"
    )
    parser.add_argument("--method", choices=METHODS, default="lora", help="%(default)s by default")
    parser.add_argument("--circuit", type=Path, metavar="FILE", help="a circuit as JSON: the rows and columns to tune")
    _add_training_arguments(parser)
    parser.add_argument("--load-into", metavar="URL", help="load the variant into this server, under its name")
    parser.add_argument("--shared", action="store_true", help="with --load-into: for every user of it")
    add_connection_arguments(parser)


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=int, default=60, metavar="N", help="%(default)s by default")
    group.add_argument("--batch-size", type=int, default=8, metavar="N")
    group.add_argument("--lr", type=float, default=2e-4, metavar="X", help="AdamW's learning rate (%(default)s)")
    group.add_argument("--schedule", choices=("constant", "linear", "cosine"), default="constant")
    group.add_argument("--warm-up", type=int, default=0, metavar="STEPS")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--rank", type=int, default=8, help="%(default)s by default")
    group.add_argument("--alpha", type=float, default=16.0, help="LoRA's: products are scaled by alpha / rank")
    group.add_argument("--full-rank", action="store_true", help="circuit: tune the rows themselves")
    group.add_argument(
        "--relocalise-every",
        type=int,
        default=0,
        metavar="N",
        help="circuit: find it again every N steps and follow it",
    )
    group.add_argument(
        "--weights", nargs="+", metavar="NAME", help="such as w_q.* w_down.3 (default: all seven, every layer)"
    )
    group.add_argument("--layer", type=int, nargs="+", default=[], metavar="L", help="reft, rmu, breakers")
    group.add_argument(
        "--loss",
        action="append",
        default=[],
        metavar="NAME=WEIGHT",
        help="task, preserve, coherence, sparse (default: task=0.7 preserve=0.2 coherence=0.1, as far as they can be)",
    )
    group.add_argument(
        "--push",
        action="append",
        default=[],
        metavar="LAYER,NEURON,AMOUNT[,THRESHOLD]",
        help="steered: add AMOUNT to a neuron while it trains, where it is above THRESHOLD (0)",
    )
    group.add_argument("--checkpoints", type=int, default=5, metavar="N", help="on the way (%(default)s)")
    group.add_argument("--device", default="cpu", help="torch's name of it (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Tune, print how it ended, and load the result where that was asked for."""
    from ..analysis.circuits.circuit import Circuit
    from ..analysis.tuning.examples import TrainExample, read_examples
    from ..analysis.tuning.tuning import tune
    from ..backends.checkpoints import resolve_model
    from .pull import progress_bars

    with progress_bars() as report:
        checkpoint = resolve_model(args.model, cache_dir=cache_dir_from(None), progress=report)
    general: list[TrainExample | str] = []
    if args.general == "set:general":
        from ..analysis.datasets import load_set

        general += [item["text"] for item in load_set("general").data["texts"]]
    elif args.general:
        general += read_examples(args.general)
    tuned = tune(
        checkpoint.folder,
        read_examples(args.train),
        args.out,
        _config(args),
        circuit=None if args.circuit is None else Circuit.load(args.circuit),
        general=general,
        pushes=[_push(text) for text in args.push],
        base=_base(checkpoint.folder, checkpoint.model_id, checkpoint.model_hash),
        name=args.name or args.out.name,
    )
    _print(tuned)
    if args.load_into:
        args.url = args.load_into
        with connected(args) as client:
            info = client.load_variant(tuned.variant, shared=args.shared)
        print(f"loaded     {info.name}@{info.version} into {args.load_into}")
    return 0


def _config(args: argparse.Namespace) -> Any:
    from ..analysis.tuning.config import TuneConfig

    given: dict[str, Any] = {"weights": tuple(args.weights)} if args.weights else {}
    return TuneConfig(
        method=args.method,
        steps=args.steps,
        batch_size=args.batch_size,
        lr=args.lr,
        schedule=args.schedule,
        warm_up_steps=args.warm_up,
        seed=args.seed,
        rank=args.rank,
        alpha=args.alpha,
        full_rank=args.full_rank,
        relocalise_every=args.relocalise_every,
        losses=_losses(args.loss),
        layers=tuple(args.layer),
        checkpoints=args.checkpoints,
        device=args.device,
        **given,
    )


def _losses(given: list[str]) -> Mapping[str, float] | None:
    found: dict[str, float] = {}
    for text in given:
        name, equals, weight = text.partition("=")
        try:
            found[name] = float(weight)
        except ValueError:
            equals = ""
        if not equals:
            raise InvalidArgument(f"--loss {text!r}: write NAME=WEIGHT, such as preserve=0.2")
    return found or None


def _push(text: str) -> Any:
    from ..analysis.tuning.pushes import Push

    parts = text.split(",")
    try:
        layer, unit = (int(part) for part in parts[:2])
        amount, threshold = (float(part) for part in (*parts[2:], *["0"][: 4 - len(parts)]))
        return Push(layer, unit, amount, threshold)
    except ValueError:
        raise InvalidArgument(f"--push {text!r}: write LAYER,NEURON,AMOUNT or LAYER,NEURON,AMOUNT,THRESHOLD") from None


def _base(folder: Path, model_id: str, model_hash: str) -> Any:
    """What the variant is bound to, as a server would say of the same folder."""
    import json

    from ..protos.variants.manifest import Base

    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    architecture = str(config.get("model_type", ""))
    return Base(
        id=model_id,
        model_hash=model_hash,
        architecture=architecture,
        n_layers=int(config.get("num_hidden_layers") or config.get("n_layer") or 0),
        d_model=int(config.get("hidden_size") or config.get("n_embd") or 0),
        vocab_size=int(config.get("vocab_size") or 0),
        dtype="float32",
    )


def _print(tuned: Tuned) -> None:
    first, last = tuned.curves.points[0], tuned.curves.points[-1]
    print(f"{tuned.variant!r}")
    for name in tuned.curves.names:
        print(f"{name:<10} {first.get(name, 0.0):.4f} → {last.get(name, 0.0):.4f}")
    print(f"seconds    {tuned.run.seconds:.0f}, {tuned.run.steps} steps")
    print(f"variant    {tuned.folder / 'variant'}")
