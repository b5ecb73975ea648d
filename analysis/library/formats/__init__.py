"""Circuits in the files of other tools."""

from .files import FORMATS, read_circuit, write_circuit

__all__ = ["FORMATS", "read_circuit", "write_circuit"]
