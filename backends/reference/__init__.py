"""The definition of meaning: one small transformer in plain numpy that says what every site, edit and reduction is.

`load` a checkpoint folder, then `run` tokens under a plan. It shares nothing with the backends that serve requests but
the contract, the noise and the orthonormal bases, so that tests can hold them against it.
"""

from .load import load
from .model import ReferenceModel
from .reductions import Captured
from .run import ReferenceResult, run

__all__ = ["Captured", "ReferenceModel", "ReferenceResult", "load", "run"]
