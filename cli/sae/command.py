"""`probewire sae`: sparse autoencoders, from activations to a page of latents. Each action is a module of its own."""

from __future__ import annotations

import argparse
from types import ModuleType

from . import (
    collect as sae_collect,
    dashboard as sae_dashboard,
    eval as sae_eval,
    forget as sae_forget,
    sweep as sae_sweep,
    train as sae_train,
)

__all__ = ["add_arguments", "run"]

ACTIONS: dict[str, tuple[ModuleType, str]] = {
    "collect": (sae_collect, "store a site's activations over a corpus"),
    "train": (sae_train, "train SAEs on a store, or straight from a server"),
    "eval": (sae_eval, "score SAEs on held-out texts"),
    "sweep": (sae_sweep, "compare SAEs of several seeds, over k and d_sae"),
    "forget": (sae_forget, "clamp latents, and count what the model forgets"),
    "dashboard": (sae_dashboard, "write a page of an SAE's latents"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire sae` takes."""
    parser.epilog = "Needs the extra: pip install 'probewire[sae]'. `probewire sae ACTION --help` says more."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, summary) in ACTIONS.items():
        action = actions.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        module.add_arguments(action)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; gives the exit status."""
    module, _ = ACTIONS[args.action]
    return module.run(args)
