"""Circuits to keep: a library in a folder, search, comparison, other formats.

library = CircuitLibrary("circuits")
library.add(circuit.with_card(name="ioi-heads", category="syntax/names", description="who gets the drink"))
library.search("name movers")[0].circuit
"""

from .difference import Difference, difference
from .formats import read_circuit, write_circuit
from .search import Hit
from .store import CircuitLibrary

__all__ = ["CircuitLibrary", "Difference", "Hit", "difference", "read_circuit", "write_circuit"]
