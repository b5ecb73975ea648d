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
from .model_map import ModelMap, fit_map, random_map
from .moments import Moments, SiteMoments, second_moment
from .sequence import Sequential, edit_sequence
from .shipped import capital_facts, synthetic_facts
from .solver import Solved, solve_delta
from .target_value import TargetValue, target_value
from .transfer import Transferred, install_circuit, transfer_affine, transfer_variant, transfer_vector
from .transferred_condition import TransferredCondition, transfer_condition
from .twins import rotated_twin, truncated_twin

__all__ = [
    "Answers",
    "ChosenLayer",
    "Edited",
    "Fact",
    "FactScores",
    "ModelMap",
    "Moments",
    "Question",
    "Sequential",
    "SiteMoments",
    "Solved",
    "TargetValue",
    "Transferred",
    "TransferredCondition",
    "capital_facts",
    "choose_layer",
    "edit_facts",
    "edit_sequence",
    "fit_map",
    "in_context",
    "inject_facts",
    "install_circuit",
    "load_facts",
    "locate_fact",
    "measure_facts",
    "random_map",
    "rotated_twin",
    "save_facts",
    "second_moment",
    "solve_delta",
    "steered",
    "synthetic_facts",
    "target_value",
    "transfer_affine",
    "transfer_condition",
    "transfer_variant",
    "transfer_vector",
    "truncated_twin",
    "variant_hooks",
]
