"""Which parts of a forward a metric owes to."""

from .atp_star import grad_drop, qk_fix
from .attribution_patching import attribution_patching
from .causal_tracing import Tracing, subject_sigma, trace
from .direct_effects import DirectEffects, direct_effects
from .direct_logit import DirectLogit, direct_logit
from .edges import EdgeScores, edge_attribution
from .graph import Graph, GraphInfo, Node
from .graph_page import graph_page
from .influence import Pruned, cumulative, edge_influence, node_influence, prune
from .lens import LogitLens, logit_lens
from .neuron_graph import neuron_graph
from .neuronpedia import neuronpedia_json, save_neuronpedia
from .pairs import Direction, Pair, make_pairs
from .patching import Patching, patch
from .path_patching import PathPatching, path_patching
from .relp import GRAPH_RULES, PATCHING_RULES, Relevance, relp, relp_patching
from .taylor import Attribution

__all__ = [
    "GRAPH_RULES",
    "PATCHING_RULES",
    "Attribution",
    "DirectEffects",
    "DirectLogit",
    "Direction",
    "EdgeScores",
    "Graph",
    "GraphInfo",
    "LogitLens",
    "Node",
    "Pair",
    "Patching",
    "PathPatching",
    "Pruned",
    "Relevance",
    "Tracing",
    "attribution_patching",
    "cumulative",
    "direct_effects",
    "direct_logit",
    "edge_attribution",
    "edge_influence",
    "grad_drop",
    "graph_page",
    "logit_lens",
    "make_pairs",
    "neuron_graph",
    "neuronpedia_json",
    "node_influence",
    "patch",
    "path_patching",
    "prune",
    "qk_fix",
    "relp",
    "relp_patching",
    "save_neuronpedia",
    "subject_sigma",
    "trace",
]
