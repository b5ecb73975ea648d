"""Behaviours that a model has or should have: found, removed, brought about, gated, detected; with what each of it costs."""

from __future__ import annotations

from .attacked import Attacked, UnderAttack, attacked
from .attacks import AS_ASKED, ATTACKS, Attack
from .behaviour import BehaviourScores, Presence, behaviour_present, score_behaviour
from .changes import ablate_direction, gate, induce_direction, redirect
from .detection import Detector, detector
from .directions import Directions, Selected, ablation_hooks, behaviour_direction, select_direction
from .relearning import RELEARN, Relearned, relearn

__all__ = [
    "AS_ASKED",
    "ATTACKS",
    "RELEARN",
    "Attack",
    "Attacked",
    "BehaviourScores",
    "Detector",
    "Directions",
    "Presence",
    "Relearned",
    "Selected",
    "UnderAttack",
    "ablate_direction",
    "ablation_hooks",
    "attacked",
    "behaviour_direction",
    "behaviour_present",
    "detector",
    "gate",
    "induce_direction",
    "redirect",
    "relearn",
    "score_behaviour",
    "select_direction",
]
