"""Steering: vectors from texts, which tokens to steer at equal cost, and conditions found from examples."""

from __future__ import annotations

from ..reports.at_ends import Measured, kl_at_end, measure
from .choices import Choice, choice, logodds_of
from .compare import compare_positions
from .comparison import SteeringComparison
from .conditions import FittedCondition, conditional, fit_condition
from .continuations import Continued, continuation_perplexity, continued
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
    "compare_positions",
    "conditional",
    "continuation_perplexity",
    "continued",
    "fit_condition",
    "kl_at_end",
    "logodds_of",
    "measure",
    "positions_of",
    "semantic_density",
    "steering_vector",
]
