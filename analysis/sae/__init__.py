"""Sparse autoencoders: activation datasets, training, evaluation, stability, dashboards, statistics, forgetting, steering."""

from .dashboard.dashboard import Steering, dashboard
from .data import corpus
from .data.batches import ArrayBatches, Batches
from .data.collect import collect, detect_massive
from .data.documentation import documentation
from .data.live import LiveBatches
from .data.store import ActivationStore
from .latents.clusters import cluster_latents, count_coactivation
from .latents.statistics import LatentCounts, compare as compare_corpora, count_latents
from .latents.steering import DoseResponse, dose_response, word_ids
from .model.configs import TrainConfig
from .model.loaded import LoadedSae, load
from .scoring.absorption import absorption
from .scoring.losses import losses
from .scoring.probing import baseline_probing, sae_probing
from .scoring.scorecard import score
from .scoring.scores import score_rows
from .scoring.spurious import correlation_removal
from .scoring.targeted import targeted_perturbation
from .seeds.adaptive import AdaptiveL0, adaptive_l0
from .seeds.controls import random_dictionaries
from .seeds.matched import matched_controls
from .seeds.stability import Stability, one_to_one, pwmcc, stability
from .seeds.sweeps import run_sweep
from .training.consistency import Consistency
from .training.several import train_several
from .training.training import TrainedSae, train
from .unlearning.forgetting import forgetting

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
