"""The definition of meaning: one small transformer in plain numpy that says what every site, edit and reduction is.

`load` a checkpoint folder, then `run` tokens under a plan. It shares nothing with the backends that serve requests but
the contract, the noise and the orthonormal bases, so that tests can hold them against it.
"""

from .families import FAMILIES
from .load import load
from .model import ReferenceModel
from .reductions import Captured
from .run import ReferenceResult, run

MODEL_TYPES = frozenset(FAMILIES)
"""That it defines."""

__all__ = ["MODEL_TYPES", "Captured", "ReferenceModel", "ReferenceResult", "load", "run"]
