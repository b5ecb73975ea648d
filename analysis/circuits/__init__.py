"""Circuits: finding, scoring and saving them."""

from .ablated import ABLATIONS, Ablated, Ablation, ablated
from .card import Card, Claim, Edge
from .circuit import Circuit, Origin
from .composition import compose_circuits, lifted
from .discovery import Dropped, Pruned, acdc_nodes, prune_ranking
from .edge_circuits import EdgeModel, acdc_edges, edge_circuits
from .edge_space import EdgeSpace
from .faithfulness import (
    FRACTIONS,
    Curve,
    Mib,
    Minimality,
    RandomControl,
    area_from_one,
    area_under,
    completeness,
    curve,
    faithfulness,
    incompleteness,
    judge,
    mib,
    minimality,
    random_control,
    random_masks,
)
from .growth import Grown, Growth, Reuse, Slope, growth, n_parameters, reuse
from .heads import (
    HeadRoles,
    NameMovers,
    copy_effects,
    duplicate_token,
    head_roles,
    induction,
    name_movers,
    previous_token,
    repeated_tokens,
)
from .installed import install
from .interference import Interference, interference
from .joined import AnySpace, JoinedSpace, node_space
from .ranking import rank_units
from .space import Mask, Space, Unit, head_space, make_space, neuron_space
from .weights import WeightMask, WeightPart, circuit_weights

__all__ = [
    "ABLATIONS",
    "FRACTIONS",
    "Ablated",
    "Ablation",
    "AnySpace",
    "Card",
    "Circuit",
    "Claim",
    "Curve",
    "Dropped",
    "Edge",
    "EdgeModel",
    "EdgeSpace",
    "Grown",
    "Growth",
    "HeadRoles",
    "Interference",
    "JoinedSpace",
    "Mask",
    "Mib",
    "Minimality",
    "NameMovers",
    "Origin",
    "Pruned",
    "RandomControl",
    "Reuse",
    "Slope",
    "Space",
    "Unit",
    "WeightMask",
    "WeightPart",
    "ablated",
    "acdc_edges",
    "acdc_nodes",
    "area_from_one",
    "area_under",
    "circuit_weights",
    "completeness",
    "compose_circuits",
    "copy_effects",
    "curve",
    "duplicate_token",
    "edge_circuits",
    "faithfulness",
    "growth",
    "head_roles",
    "head_space",
    "incompleteness",
    "induction",
    "install",
    "interference",
    "judge",
    "lifted",
    "make_space",
    "mib",
    "minimality",
    "n_parameters",
    "name_movers",
    "neuron_space",
    "node_space",
    "previous_token",
    "prune_ranking",
    "random_control",
    "random_masks",
    "rank_units",
    "repeated_tokens",
    "reuse",
]
