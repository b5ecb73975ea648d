"""`probewire sae forget`: what clamping an SAE's latents makes the model forget, and what else it costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...protos.errors import InvalidArgument
from ..connection import add_connection_arguments, connected
from .texts import TEXTS, add_record_arguments, opened

if TYPE_CHECKING:
    from ...analysis.sae.unlearning.results import Forgetting

__all__ = ["add_arguments", "run"]

EXAMPLE = """A line of questions is {"question": …, "choices": […], "answer": index, letter or the choice itself}.

  probewire sae forget sae --forget-texts biology.jsonl --retain-texts all.jsonl --forget-questions biology-q.jsonl \\
    --retain-questions history-q.jsonl geography-q.jsonl --out forgetting"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire sae forget` takes."""
    parser.epilog = EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "sae",
        metavar="SAE",
        help="a folder in the sae-lens format, or the name of an SAE that the server has loaded from a folder of this machine",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write forgetting.json and .png there too")
    parser.add_argument("--site", default="", help="where the SAE reads, when its config does not say")
    parser.add_argument("--model", default="", help="which of the served models")
    parser.add_argument("--allow-untrained", action="store_true", help="run an SAE that was never trained")
    _add_data_arguments(parser)
    _add_protocol_arguments(parser)
    add_connection_arguments(parser)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("texts and questions")
    group.add_argument("--forget-texts", required=True, metavar="PATH", help=f"of what to forget: {TEXTS}")
    group.add_argument("--retain-texts", required=True, metavar="PATH", help="of what to keep, likewise")
    add_record_arguments(group)
    group.add_argument("--forget-questions", required=True, type=Path, metavar="JSONL", help="on what to forget")
    group.add_argument(
        "--retain-questions",
        required=True,
        nargs="+",
        action="extend",
        metavar="[NAME=]JSONL",
        help="on what to keep: one set or several, called by their files' names unless said otherwise",
    )
    group.add_argument(
        "--form", choices=("text", "letter"), default="text", help="score choices written out, or letters (%(default)s)"
    )
    group.add_argument(
        "--length",
        choices=("byte", "token", "none"),
        default="byte",
        help="what a written-out choice's log-probability is divided by (%(default)s)",
    )
    group.add_argument("--context", type=int, default=128, metavar="N", help="tokens of an input (%(default)s)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="read no more of the texts of either kind")


def _add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("configurations: every combination of these is run")
    group.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        default=(0.001, 0.01),
        metavar="SHARE",
        help="drop latents that fire at this share of the retain texts' tokens, or more (0.001 0.01)",
    )
    group.add_argument(
        "--latents", type=int, nargs="+", default=(10, 20), metavar="N", help="how many are clamped (10 20)"
    )
    group.add_argument(
        "--multipliers",
        type=float,
        nargs="+",
        default=(25.0, 50.0, 100.0, 200.0),
        metavar="X",
        help="where they fire they become −X (25 50 100 200)",
    )
    group.add_argument(
        "--gate", type=float, default=0.99, metavar="SHARE", help="retain questions that must be kept (%(default)s)"
    )
    group.add_argument(
        "--control-draws",
        type=int,
        default=3,
        metavar="N",
        help="run all again with random latents, N times (%(default)s); 0 leaves it out",
    )
    group.add_argument("--seed", type=int, default=0, help="of the random latents (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Clamp and ask; prints every configuration and the score."""
    from ...analysis.sae.unlearning.forgetting import forgetting
    from ...analysis.sae.unlearning.questions import load_questions

    # All are opened first: a name mistyped shall not be found out after minutes.
    forget_texts, retain_texts = opened(args.forget_texts, args), opened(args.retain_texts, args)
    forget = load_questions(args.forget_questions)
    retain = {name: load_questions(path) for name, path in _named(args.retain_questions).items()}
    if args.out is not None:
        _make(args.out)
    with connected(args) as client:
        found = forgetting(
            client,
            args.sae,
            forget_texts=forget_texts,
            retain_texts=retain_texts,
            forget_questions=forget,
            retain_questions=retain,
            thresholds=args.thresholds,
            n_latents=args.latents,
            multipliers=args.multipliers,
            gate=args.gate,
            form=args.form,
            length=args.length,
            context=args.context,
            max_tokens=args.max_tokens,
            control_draws=args.control_draws,
            seed=args.seed,
            allow_untrained=args.allow_untrained,
            site=args.site,
            model=args.model,
        )
    print(found.table())
    if args.out is not None:
        _write(found, args.out)
    return 0


def _named(given: list[str]) -> dict[str, Path]:
    """By the name before "=", else by the file's own; a path may hold "=" below a folder."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            name, path = Path(text).stem, text
        if not name or not path:
            raise InvalidArgument(f"--retain-questions {text!r}: write JSONL or NAME=JSONL")
        if name in found:
            raise InvalidArgument(
                f"--retain-questions: both {found[name]} and {path} are called {name!r}; write NAME={path}"
            )
        found[name] = Path(path)
    return found


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(f"--out {folder} cannot be made a folder: {error}") from None


def _write(found: Forgetting, folder: Path) -> None:
    from ...analysis.sae.unlearning.plots import clamp_scatter

    found.save(folder / "forgetting.json")
    if any(result.forget is not None for result in found.results):
        clamp_scatter(found, path=folder / "forgetting.png")
        return
    (folder / "forgetting.png").unlink(missing_ok=True)  # an earlier run's
    print("no configuration could be run, so there is no forgetting.png")
