"""A circuit's own weights edited, and the circuit behind a bias."""

from __future__ import annotations

from .bias import BiasScores, find_bias_circuit, pronoun_prompts, pronoun_rows, score_bias
from .columns import EditedCircuit, edit_circuit
from .transforms import Erase, Mean, Orthogonalise, ProjectOut, Retarget, Scale, Transform

__all__ = [
    "BiasScores",
    "EditedCircuit",
    "Erase",
    "Mean",
    "Orthogonalise",
    "ProjectOut",
    "Retarget",
    "Scale",
    "Transform",
    "edit_circuit",
    "find_bias_circuit",
    "pronoun_prompts",
    "pronoun_rows",
    "score_bias",
]
