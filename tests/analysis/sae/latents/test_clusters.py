"""Co-activation against brute force, and planted groups found again."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.sae.latents.clusters import Coactivation, cluster_latents, cosines
from probewire.clients import InvalidArgument
from tests.analysis.sae.text_windows import random_windows, window


def test_coactivation_is_counted_token_by_token() -> None:
    windows, chosen = random_windows(10, 6), [4, 1, 2]
    found = Coactivation.empty(chosen)
    for item in windows:
        found.add(item)
    together = np.zeros((3, 3), dtype=int)
    for item in windows:
        for position in range(1, len(item.tokens)):
            firing = set(item.latent[item.position == position].tolist())
            for i, one in enumerate(chosen):
                together[i] += [one in firing and other in firing for other in chosen]
    assert (found.together == together).all()
    either = together[0, 0] + together[1, 1] - together[0, 1]
    assert found.jaccard[0, 1] == pytest.approx(together[0, 1] / either)
    total = sum(float(item.value[item.latent == 4].sum()) for item in windows)
    assert sum(found.mass[0].values()) == pytest.approx(total, rel=1e-6)


def test_planted_groups_are_found_and_named() -> None:
    """Latents 0, 1, 2 fire at 'dog', 3 and 4 at 'cat', and 5 alone at 'sea'."""
    words = {0: "dog", 1: "dog", 2: "dog", 3: "cat", 4: "cat", 5: "sea"}
    rng = np.random.default_rng(0)
    found = Coactivation.empty(range(6))
    for text in range(30):
        tokens = ["<s>", *(str(word) for word in rng.choice(["dog", "cat", "sea", "of"], size=12))]
        rows = {
            p: {k: float(1 + rng.random()) for k, word in words.items() if word == token}
            for p, token in enumerate(tokens)
            if p
        }
        found.add(window(tokens, rows, text=text))
    axes = np.eye(8)[[0, 0, 0, 1, 1, 2]] + 0.1 * rng.standard_normal((6, 8))
    clusters = cluster_latents(axes, found, threshold=0.5)
    assert [set(c.latents) for c in clusters.clusters] == [{0, 1, 2}, {3, 4}, {5}]
    assert [c.name for c in clusters.clusters] == ["dog", "cat", "sea"]
    assert clusters.clusters[0].similarity > 0.9
    assert clusters.clusters[2].similarity == 1.0
    assert clusters.silhouette is not None
    assert clusters.silhouette > 0.7
    assert clusters.labels == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 2}
    two = cluster_latents(axes, found, n_clusters=2)
    assert len(two.clusters) == 2


def test_a_word_that_is_everywhere_names_nothing() -> None:
    """Both latents fire at every 'of' and every 'moon'; of ten words, nine are 'of'."""
    found = Coactivation.empty([0, 1])
    tokens = ["<s>", *(["of"] * 9), "moon"]
    for text in range(4):
        found.add(window(tokens, {p: {0: 1.0, 1: 1.0} for p in (1, 2, 10)}, text=text))
    found.add(window(["<s>", *["of"] * 10], {}, text=4))
    (cluster,) = cluster_latents(np.eye(2), found, decoder_weight=0).clusters
    share, common = 1 / 3, 4 / 50
    assert share * np.log(share / common) > 2 / 3 * np.log(2 / 3 / (46 / 50)), "by hand: moon gains, of loses"
    assert cluster.name == "moon, of"


def test_either_kind_of_likeness_can_decide_alone() -> None:
    """0 and 1 write alike and 0 and 2 fire alike."""
    found = Coactivation.empty([0, 1, 2])
    for text in range(5):
        found.add(window("abcd", {1: {0: 1.0, 2: 1.0}, 2: {1: 1.0}}, text=text))
    directions = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    by_direction = cluster_latents(directions, found, decoder_weight=1.0, threshold=0.5)
    by_firing = cluster_latents(directions, found, decoder_weight=0.0, threshold=0.5)
    assert set(by_direction.clusters[0].latents) == {0, 1}
    assert set(by_firing.clusters[0].latents) == {0, 2}


def test_latents_without_a_direction_or_a_firing_stay_alone() -> None:
    assert cosines(np.array([[0.0, 0.0], [2.0, 0.0]])).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    counted = Coactivation.empty([7, 9])
    counted.add(window("ab", {1: {9: 1.0}}))
    clusters = cluster_latents(np.array([[0.0, 0.0], [1.0, 0.0]]), counted)
    assert {c.name for c in clusters.clusters} == {"b", "never fires"}
    assert clusters.silhouette is None


def test_refusals() -> None:
    with pytest.raises(InvalidArgument, match="distinct"):
        Coactivation.empty([1, 1])
    with pytest.raises(InvalidArgument, match="2 to 4096"):
        Coactivation.empty([1])
    counted = Coactivation.empty([0, 1])
    with pytest.raises(InvalidArgument, match="a row for each of 2 latents"):
        cluster_latents(np.eye(3), counted)
    with pytest.raises(InvalidArgument, match="threshold"):
        cluster_latents(np.eye(2), counted, threshold=0)
    with pytest.raises(InvalidArgument, match="n_clusters"):
        cluster_latents(np.eye(2), counted, n_clusters=3)
