"""`probewire variant load | list | show | fetch | unload`: variants of a running server."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ...protos.variants.stored import VariantInfo
from ...protos.variants.variant import Variant
from ..connection import add_connection_arguments, connected
from ..responsive_table import Column, ResponsiveTable
from .action import Action

__all__ = ["ACTIONS"]


def _load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a folder of ours, of PEFT or of mlx-lm; or a hub id that the server fetches")
    parser.add_argument("--name", default="", help="what requests call it (default: as it says, or the folder's name)")
    parser.add_argument("--shared", action="store_true", help="for all users of the server")
    parser.add_argument(
        "--rebase", action="store_true", help="though it was made for another model, where all shapes fit"
    )
    _model(parser)


def _load(args: argparse.Namespace) -> int:
    with connected(args) as client:
        info = client.load_variant(
            args.source, name=args.name, shared=args.shared, rebase=args.rebase, model=args.model
        )
    print(f"{info.name}@{info.version} on {info.model}: {_size(info)}; sha256:{info.hash[:16]}")
    return 0


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    _model(parser)


def _list(args: argparse.Namespace) -> int:
    with connected(args) as client:
        found = client.variants(model=args.model)
    if not found:
        print("no variants are loaded for you")
        return 0
    cells = [
        ("name", [f"{one.name}@{one.version}" for one in found], 0),
        ("model", [one.model for one in found], 1),
        ("owner", [one.owner + (" (shared)" if one.shared else "") for one in found], 2),
        ("changes", [_size(one) for one in found], 3),
        ("method", [one.method for one in found], 4),
        ("hash", [one.hash[:12] for one in found], 5),
    ]
    columns = [Column(name, [Text(cell) for cell in column], rank, 6) for name, column, rank in cells]
    Console().print(ResponsiveTable(columns))
    return 0


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of a loaded variant (name, name@version, owner/name, sha256:HEX), or a folder")
    _model(parser)


def _show(args: argparse.Namespace) -> int:
    if Path(args.name).is_dir():
        _show_value(Variant.load(args.name))
        return 0
    with connected(args) as client:
        info = client.variant(args.name, args.model)
    rows = [
        ("name", f"{info.name}, version {info.version}, {info.owner}'s{', shared' if info.shared else ''}"),
        ("model", f"{info.model} ({info.model_hash[:16]}…)"),
        ("hash", f"sha256:{info.hash}"),
        ("changes", _size(info)),
        ("weights", ", ".join(info.weights) or "none"),
        ("method", info.method or "not told"),
        ("says", info.description or "nothing"),
        ("from", info.source),
        ("loaded", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.created_s))),
    ]
    for label, value in rows:
        print(f"{label:<8} {value}")
    return 0


def _show_value(variant: Variant) -> None:
    print(repr(variant))
    for name, delta in variant.deltas.items():
        print(
            f"  {name:<14} {delta.d_in} → {delta.d_out}, rank {delta.rank}, ‖ΔW‖ {delta.norm():.4g}{'' if delta.bias is None else ', with a bias'}"
        )
    if variant.plan.hooks:
        print(repr(variant.plan))


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="of a variant that you may use")
    parser.add_argument("folder", type=Path, help="to write, new or empty")
    _model(parser)


def _fetch(args: argparse.Namespace) -> int:
    with connected(args) as client:
        found = client.fetch_variant(args.name, args.folder, model=args.model)
    print(f"{found!r}\nwritten to {args.folder}")
    return 0


def _unload_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="with @version that one alone, else all of a name")
    _model(parser)


def _unload(args: argparse.Namespace) -> int:
    with connected(args) as client:
        client.unload_variant(args.name, args.model)
    print(f"{args.name} is unloaded; requests that run with it go on")
    return 0


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="", help="where several are loaded")
    add_connection_arguments(parser)


def _size(info: VariantInfo) -> str:
    hooks = f"{info.n_hooks} hook{'' if info.n_hooks == 1 else 's'}"
    deltas = f"{len(info.weights)} weight{'' if len(info.weights) == 1 else 's'} of rank up to {info.max_rank}"
    return ", ".join(part for part, there in ((deltas, info.weights), (hooks, info.n_hooks)) if there)


ACTIONS = (
    Action("load", "load a variant or an adapter onto a served model", _load_arguments, _load),
    Action("list", "your variants, and those that others share", _list_arguments, _list),
    Action("show", "what is known of one, on the server or in a folder", _show_arguments, _show),
    Action("fetch", "write one from the server into a folder", _fetch_arguments, _fetch),
    Action("unload", "forget one", _unload_arguments, _unload),
)
