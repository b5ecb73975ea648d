"""Steering: vectors from texts, which tokens to steer at equal cost, and conditions found from examples."""

from __future__ import annotations

from .choices import Choice, choice, choice_logodds
from .compare import compare_positions
from .comparison import SteeringComparison
from .conditions import FittedCondition, conditional, fit_condition
from .continuations import Continued, continued, perplexity_by_base
from .measured import Measured, kl_to_base, measure
from .positions import STRATEGIES, positions_of, semantic_density
from .vectors import FittedVector, steering_vector

__all__ = [
    "STRATEGIES",
    "Choice",
    "Continued",
    "FittedCondition",
    "FittedVector",
    "Measured",
    "SteeringComparison",
    "choice",
    "choice_logodds",
    "compare_positions",
    "conditional",
    "continued",
    "fit_condition",
    "kl_to_base",
    "measure",
    "perplexity_by_base",
    "positions_of",
    "semantic_density",
    "steering_vector",
]
