"""Activations of a model under training, with their gradients: what losses beside the logits are computed from."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from ...protos.sites import Site
from .base import Base

__all__ = ["reading"]


@contextmanager
def reading(base: Base, sites: Sequence[str]) -> Generator[dict[str, Any]]:
    """Site → its value [example, pos, width] in the forwards made within; of mlp_act and z (inputs of w_down and w_o),

    and resid_post. Heads of z are flattened.
    """
    found: dict[str, Any] = {}
    handles: list[Any] = []
    for name in sites:
        site = Site.parse(name)
        if site.name == "resid_post":
            handles.append(base.block(site.layer or 0).register_forward_hook(_output(found, name)))
        else:
            weight = "w_down" if site.name == "mlp_act" else "w_o"
            handles.append(base.module(f"{weight}.{site.layer}").register_forward_pre_hook(_input(found, name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _output(found: dict[str, Any], name: str) -> Any:
    def keep(module: Any, inputs: Any, output: Any) -> None:
        del module, inputs
        found[name] = output[0] if isinstance(output, tuple) else output

    return keep


def _input(found: dict[str, Any], name: str) -> Any:
    def keep(module: Any, inputs: Any) -> None:
        del module
        found[name] = inputs[0]

    return keep
