"""Shows methods that are made of functions, `run = waits(calls.run)`, with the function's arguments and docstring."""

from __future__ import annotations

import copy
from typing import Any

import griffe

__all__ = ["MadeMethods"]

_MAKERS = ("waits", "awaits", "streams", "asking")


class MadeMethods(griffe.Extension):
    """For mkdocstrings: the docstrings' reader sees the text alone, in which those are values."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Put functions in the place of such values, once all modules are known."""
        if "clients" not in pkg.members:
            return
        for cls in (pkg["clients.client.Client"], pkg["clients.async_client.AsyncClient"]):
            for name, member in list(cls.members.items()):
                if (function := _function(member, loader)) is not None:
                    made = copy.copy(function)
                    made.name, made.parent = name, cls
                    cls.set_member(name, made)


def _function(member: Any, loader: griffe.GriffeLoader) -> Any:
    """The function that a value is made of, if it is; through values that are themselves made of one."""
    value = member.value if member.is_attribute else None
    if not isinstance(value, griffe.ExprCall) or str(value.function) not in _MAKERS:
        return None
    made_of: Any = value.arguments[0]
    target = loader.modules_collection[made_of.canonical_path]
    return target if target.is_function else _function(target, loader)
