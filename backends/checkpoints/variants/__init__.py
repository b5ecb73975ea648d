"""Variants and checkpoints: merged into their base, and found as what a tuned model is more than its base."""

from .difference import Difference, difference
from .merged import MergedVariant, merge_variant

__all__ = ["Difference", "MergedVariant", "difference", "merge_variant"]
