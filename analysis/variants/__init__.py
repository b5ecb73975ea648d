"""Variants put together, compared, and turned from hooks into weights."""

from .bake import Baked, bake
from .compose import Composed, compose
from .conflicts import Conflict, conflicts, diff

__all__ = ["Baked", "Composed", "Conflict", "bake", "compose", "conflicts", "diff"]
