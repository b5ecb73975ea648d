"""Sparse probing: the planted latent is the one that is chosen, and accuracies are scikit-learn's own."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.model.loaded import LoadedSae
from probewire.analysis.sae.scoring.probing import baseline_probing, sae_probing, set_seed, top_features
from probewire.clients import FailedPrecondition, InvalidArgument
from tests.analysis.sae.planted_sae import orthonormal, probe_rows, sae_of

D_IN, CLASSES = 24, 4
DICTIONARY = orthonormal(12, D_IN)
RNG = np.random.default_rng(0)


def planted(name: str = "planted", strength: float = 6.0, noise: float = 1.0):
    """Latent i fires in class i; latents 4 … 11 anywhere."""

    def rows(label: int, n: int) -> np.ndarray:
        latents = np.abs(RNG.normal(size=(n, 12))) * 2
        latents[:, :CLASSES] = 0
        latents[:, label] = strength + RNG.normal(size=n)
        return latents @ DICTIONARY + noise * RNG.normal(size=(n, D_IN)) * 0.2

    return probe_rows({f"class {i}": (rows(i, 40), rows(i, 30)) for i in range(CLASSES)}, name)


DATA = planted()


@cache
def _sae() -> LoadedSae:
    """Made when a test first asks: sae-lens takes seconds to load."""
    return sae_of(DICTIONARY)


def test_the_planted_latent_is_found() -> None:
    found = sae_probing(_sae(), [DATA])
    for index, label in enumerate(DATA.classes):
        assert found.features["sae_top_1"]["planted", label] == (index,)
        assert found.correct["sae_top_1"]["planted", label].shape == (60,)
    one = found.accuracy("sae_top_1")
    assert one.value > 0.99
    assert one.n == 240
    base = baseline_probing([DATA])
    assert base.accuracy("llm").value > 0.99
    assert base.accuracy("llm_top_1").high < one.low, "no one coordinate of a rotated basis tells a class"


def test_a_random_dictionary_tells_less() -> None:
    random = sae_of(orthonormal(12, D_IN, seed=5))
    found = sae_probing(random, [DATA])
    assert found.accuracy("sae_top_1").high < sae_probing(_sae(), [DATA]).accuracy("sae_top_1").low


def test_accuracies_are_those_of_sklearn() -> None:
    regression: Any = import_module("sklearn.linear_model").LogisticRegression
    data = planted("faint", strength=1.0, noise=8.0)
    found = sae_probing(_sae(), [data]).merged(baseline_probing([data]))
    seed = set_seed("faint", 0)
    features = {"sae": (data.train.pooled_latents(_sae()), data.test.pooled_latents(_sae()))}
    features["llm"] = (data.train.pooled(), data.test.pooled())
    for index, label in enumerate(data.classes):
        train, labels = data.train.binary(index, seed)
        test, wanted = data.test.binary(index, seed)
        for side, (rows, held_out) in features.items():
            gap = rows[train][labels == 1].mean(axis=0) - rows[train][labels == 0].mean(axis=0)
            for k in (1, 2, 5, None):
                best = np.argsort(-np.abs(gap))[:k]
                model = regression(max_iter=1000)
                model.fit(rows[np.ix_(train, best)], labels)
                kind = side if k is None else f"{side}_top_{k}"
                score = model.score(held_out[np.ix_(test, best)], wanted)
                assert found.correct[kind]["faint", label].mean() == pytest.approx(score)
    assert 0.5 < found.accuracy("llm").value < 1, "hard enough to tell implementations apart"


def test_names_are_saebenchs() -> None:
    found = sae_probing(_sae(), [DATA, planted("more")]).merged(baseline_probing([DATA, planted("more")]))
    named = found.to_json()
    assert named["sae"]["sae_top_5_test_accuracy"] == found.accuracy("sae_top_5").value
    assert {"llm_test_accuracy", "llm_top_1_test_accuracy"} <= set(named["llm"])
    assert {"pca_top_1_test_accuracy"} <= set(named["pca"])
    low, high = named["llm"]["llm_test_accuracy_interval"]
    assert low <= named["llm"]["llm_test_accuracy"] <= high
    assert [row["dataset_name"] for row in named["eval_result_details"]][:2] == ["planted: class 0", "planted: class 1"]
    assert named["how"]["held_out_labels"] == 480
    assert found.accuracy("sae", "more").n == 240


def test_top_features_by_difference() -> None:
    rows = np.array([[0.0, 5, 1], [0, 5, 3], [4, 0, 2], [4, 0, 2]])
    assert top_features(rows, np.array([0, 0, 1, 1]), 2).tolist() == [1, 0]


def test_what_cannot_be_probed_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="allow_untrained"):
        sae_probing(sae_of(DICTIONARY, trained=False), [DATA])
    with pytest.raises(InvalidArgument, match="each once"):
        sae_probing(_sae(), [DATA, DATA])
    with pytest.raises(InvalidArgument, match="1 or more"):
        baseline_probing([DATA], ks=[0])
    with pytest.raises(InvalidArgument, match="there are: sae"):
        sae_probing(_sae(), [DATA]).accuracy("llm")
    with pytest.raises(InvalidArgument, match="no set"):
        sae_probing(_sae(), [DATA]).accuracy("sae", "other")
