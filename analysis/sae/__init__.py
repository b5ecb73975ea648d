"""Sparse autoencoders: activation datasets, training, evaluation, stability, dashboards, statistics, forgetting, steering."""

from . import corpus
from .absorption import absorption
from .adaptive import AdaptiveL0, adaptive_l0
from .batches import ArrayBatches, Batches
from .clusters import cluster_latents, count_coactivation
from .collect import collect, detect_massive
from .configs import TrainConfig
from .consistency import Consistency
from .controls import random_dictionaries
from .dashboard import Steering, dashboard
from .documentation import documentation
from .forgetting import forgetting
from .live import LiveBatches
from .loaded import LoadedSae, load
from .losses import losses
from .matched import matched_controls
from .probing import baseline_probing, sae_probing
from .scorecard import score
from .scores import score_rows
from .several import train_several
from .spurious import correlation_removal
from .stability import Stability, one_to_one, pwmcc, stability
from .statistics import LatentCounts, compare as compare_corpora, count_latents
from .steering import DoseResponse, dose_response, word_ids
from .store import ActivationStore
from .sweeps import run_sweep
from .targeted import targeted_perturbation
from .training import TrainedSae, train

__all__ = [
    "ActivationStore",
    "AdaptiveL0",
    "ArrayBatches",
    "Batches",
    "Consistency",
    "DoseResponse",
    "LatentCounts",
    "LiveBatches",
    "LoadedSae",
    "Stability",
    "Steering",
    "TrainConfig",
    "TrainedSae",
    "absorption",
    "adaptive_l0",
    "baseline_probing",
    "cluster_latents",
    "collect",
    "compare_corpora",
    "corpus",
    "correlation_removal",
    "count_coactivation",
    "count_latents",
    "dashboard",
    "detect_massive",
    "documentation",
    "dose_response",
    "forgetting",
    "load",
    "losses",
    "matched_controls",
    "one_to_one",
    "pwmcc",
    "random_dictionaries",
    "run_sweep",
    "sae_probing",
    "score",
    "score_rows",
    "stability",
    "targeted_perturbation",
    "train",
    "train_several",
    "word_ids",
]
