"""Take parts of a model out and measure what is lost.

change = ablation_sweep(client, fitted, "heads", [ZeroAblation(), MeanAblation(measure(client, texts, "z.*"))])
causal_battery(client, fitted, layer=29, neurons=713)
found = localise(client, texts, labels); ablate_feature(client, found)
"""

from .battery import MEASURES, Battery, causal_battery
from .controls import matched_controls
from .feature_test import FeatureTest, ablate_feature
from .localise import LayerFeature, Localisation, localise
from .methods import Ablation, MeanAblation, NoiseAblation, ResampleAblation, ZeroAblation
from .parts import Part, Parts, parts_of
from .probes import Probe
from .reference import Reference, measure, tokenized
from .sweep import ablation_sweep, measure_plans

__all__ = [
    "MEASURES",
    "Ablation",
    "Battery",
    "FeatureTest",
    "LayerFeature",
    "Localisation",
    "MeanAblation",
    "NoiseAblation",
    "Part",
    "Parts",
    "Probe",
    "Reference",
    "ResampleAblation",
    "ZeroAblation",
    "ablate_feature",
    "ablation_sweep",
    "causal_battery",
    "localise",
    "matched_controls",
    "measure",
    "measure_plans",
    "parts_of",
    "tokenized",
]
