"""Change what a model's weights say: facts, and what one model can hand to another. Numpy on the client; any backend serves it."""

from __future__ import annotations

from .answers import Answers
from .baselines import in_context, steered
from .edit_facts import edit_facts, inject_facts
from .edited import Edited, variant_hooks
from .fact import Fact, Question
from .fact_files import load_facts, save_facts
from .fact_scores import FactScores
from .layers import ChosenLayer, choose_layer, locate_fact
from .measure_facts import measure_facts
from .moments import Moments, SiteMoments, second_moment
from .sequence import Sequential, edit_sequence
from .shipped import capital_facts, synthetic_facts
from .solver import Solved, solve_delta
from .target_value import TargetValue, target_value

__all__ = [
    "Answers",
    "ChosenLayer",
    "Edited",
    "Fact",
    "FactScores",
    "Moments",
    "Question",
    "Sequential",
    "SiteMoments",
    "Solved",
    "TargetValue",
    "capital_facts",
    "choose_layer",
    "edit_facts",
    "edit_sequence",
    "in_context",
    "inject_facts",
    "load_facts",
    "locate_fact",
    "measure_facts",
    "save_facts",
    "second_moment",
    "solve_delta",
    "steered",
    "synthetic_facts",
    "target_value",
    "variant_hooks",
]
