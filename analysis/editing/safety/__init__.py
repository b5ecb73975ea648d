"""Behaviours that a model has or should have: found, removed, brought about, gated, detected; with what each of it costs."""

from __future__ import annotations

from .behaviour import BehaviourScores, Presence, behaviour_present, score_behaviour
from .changes import ablate_direction, gate, induce_direction, redirect
from .detection import Detector, detector
from .directions import Directions, Selected, ablation_hooks, behaviour_direction, select_direction

__all__ = [
    "BehaviourScores",
    "Detector",
    "Directions",
    "Presence",
    "Selected",
    "ablate_direction",
    "ablation_hooks",
    "behaviour_direction",
    "behaviour_present",
    "detector",
    "gate",
    "induce_direction",
    "redirect",
    "score_behaviour",
    "select_direction",
]
