"""Entanglement on rows where every unit's part is known, and on closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from probewire.analysis.features import (
    DOMAINS,
    DomainRows,
    causal_check,
    collect_rows,
    domain_texts,
    entangled_units,
    entanglement,
    profile,
    similar_across,
)
from probewire.analysis.features.causal import _losses
from probewire.clients import Client, Constant, InvalidArgument, Replace, hook
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

NAMES = ("a", "b", "c", "d")
BLOCKS, LENGTH = 24, 60
SHARED, ONE_DOMAIN, TWO_IDEAS, EVERYTHING, NOISE = range(5)


def planted(seed: int = 0) -> DomainRows:
    """Tokens 0 … 9 are shared; each domain has 30 of its own, three of which are an idea that stands in its own company.

    Unit 0 fires for token 3 wherever it stands; 1 for the idea of domain a; 2 for the ideas of a, b and c, which are other
    tokens in other company; 3 on anything; 4 is noise.
    """
    rng = np.random.default_rng(seed)
    domain, block, token, values = [], [], [], []
    for d in range(4):
        for b in range(BLOCKS):
            own = 100 * (d + 1)
            ids = np.where(rng.random(LENGTH) < 0.4, rng.integers(0, 10, LENGTH), own + rng.integers(3, 30, LENGTH))
            at = int(rng.integers(12, LENGTH - 12))
            ids[at - 6 : at + 7] = own + 50 + np.arange(13) % 4  # the idea's own company
            ids[at] = own + int(rng.integers(0, 3))
            ids[rng.integers(0, 10)] = 3
            row = 0.1 * rng.normal(size=(LENGTH, 5))
            row[ids == 3, SHARED] += 3 + rng.random((ids == 3).sum())
            if d == 0:
                row[at - 6 : at + 7, ONE_DOMAIN] += 5
            if d < 3:
                row[at - 2 : at + 3, TWO_IDEAS] += 5 + rng.random(5)
            fires = rng.random(LENGTH) < 0.06
            row[fires, EVERYTHING] += 4
            domain += [d] * LENGTH
            block += [d * BLOCKS + b] * LENGTH
            token += ids.tolist()
            values.append(row)
    ids = np.array(token)
    return DomainRows(
        NAMES,
        np.array(domain),
        np.array(block),
        ids,
        tuple(f" t{i}" for i in token),
        np.concatenate(values).astype(np.float32),
        "planted",
    )


@pytest.fixture(scope="module")
def rows() -> DomainRows:
    return planted()


def test_each_planted_unit_is_told_for_what_it_is(rows: DomainRows) -> None:
    found = entangled_units(rows, replicates=60, permuted=4)
    assert found.profile.effective[ONE_DOMAIN] < 2.5
    assert found.profile.effective[TWO_IDEAS] == pytest.approx(3.0, abs=0.35)
    assert TWO_IDEAS in found.entangled
    assert TWO_IDEAS in found.entangled_without_words, "its words are each domain's own"
    assert SHARED in found.broad
    assert SHARED not in found.broad_without_words, "without the shared word nothing is left of it"
    assert SHARED not in found.entangled_without_words
    assert found.word_share[SHARED] > 0.8 > 0.2 > found.word_share[EVERYTHING]
    assert EVERYTHING in found.general
    assert EVERYTHING not in found.entangled
    assert {ONE_DOMAIN, TWO_IDEAS} <= set(found.selective)
    assert EVERYTHING not in found.selective
    assert max(found.entangled_permuted) <= len(found.entangled)
    assert set(found.contexts[TWO_IDEAS]) == {"a", "b", "c"}
    assert "⟦" in found.contexts[TWO_IDEAS]["a"][0]
    assert found.to_json()["units"] == 5
    assert "units fire in several domains" in repr(found)


def test_rows_without_domains_give_nothing(rows: DomainRows) -> None:
    """The control that must come out empty: the same rows, blocks' domains drawn at random."""
    rng = np.random.default_rng(1)
    label = rng.permutation(np.repeat(np.arange(4), BLOCKS))[rows.block]
    mixed = DomainRows(NAMES, label, rows.block, rows.token, rows.text, rows.values)
    found = entangled_units(mixed, replicates=60, permuted=1)
    assert TWO_IDEAS not in found.entangled, "it is about all its ideas in every domain"
    assert len(found.selective) <= 1


def test_rates_entropy_and_information_by_hand() -> None:
    domain = np.repeat(np.arange(2), 8)
    fires = np.zeros((16, 2), dtype=bool)
    fires[:8, 0] = True  # always in one, never in the other
    fires[::2, 1] = True  # half of each
    found = profile(fires, domain, 2)
    assert found.rates.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert found.effective == pytest.approx([1.0, 2.0])
    assert found.selectivity == pytest.approx([1.0, 0.0])
    assert found.information == pytest.approx([np.log(2) - 1 / 32, -1 / 32])


def test_domains_weigh_the_same_however_many_rows_they_have() -> None:
    fires = np.array([[True]] * 2 + [[True], [False]] * 50)
    found = profile(fires, np.array([0] * 2 + [1] * 100), 2)
    assert found.rates.tolist() == [[1.0, 0.5]]
    assert found.effective[0] == pytest.approx(np.exp(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))))


def test_the_nearest_of_other_domains(rows: DomainRows) -> None:
    found = similar_across(rows, ONE_DOMAIN, n=2)
    assert set(found) == {"b", "c", "d"}
    assert all(-1 <= cosine <= 1 + 1e-6 for near in found.values() for cosine, _ in near)


def test_texts_of_four_domains() -> None:
    texts = domain_texts(6, seed=1)
    assert tuple(texts) == DOMAINS
    assert all(len(some) == 6 for some in texts.values())
    assert texts == domain_texts(6, seed=1)
    assert any("def " in text for text in texts["code"])
    assert any(": " in text and "\n" in text for text in texts["dialogue"])


def test_on_a_model(tmp_path: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    with Client.inprocess(InProcessService.create(str(folder), dtype="float32", device="cpu")) as client:
        domains = domain_texts(2)
        found = entanglement(client, domains, "mlp_act.1", max_tokens=2000, replicates=20, permuted=1, progress=False)
        assert found.profile.rates.shape == (96, 4)
        assert len(set(found.n_rows)) == 1
        assert found.profile.rates.mean() == pytest.approx(0.05, abs=0.01)
        for wrong, match in (
            ({"a": ["x"], "b": ["y"], "c": ["z"]}, "has no text of 128 tokens"),
            ({"a": ["x"]}, "three domains"),
        ):
            with pytest.raises(InvalidArgument, match=match):
                entanglement(client, wrong, "mlp_act.1", progress=False)


def test_a_units_part_is_the_rise_of_the_loss_without_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    with Client.inprocess(InProcessService.create(str(folder), dtype="float32", device="cpu")) as client:
        rows = collect_rows(client, domain_texts(1), "mlp_act.1", max_tokens=1200, progress=False)
        found = entangled_units(rows, replicates=20, permuted=0)
        checked = causal_check(client, found, rows, units=[7], windows=1, controls=30)
        assert set(checked.losses) == {7}
        assert set(checked.losses[7]) == set(DOMAINS)
        assert all(np.isfinite(z) for z in checked.losses[7].values())
        assert "ablating them raises the loss" in checked.told[-1]
        # By hand: one block's loss with the unit at its mean, from the logits themselves.
        ids = rows.token[rows.block == rows.block[0]].tolist()
        mean = np.array([rows.values[:, 7].mean()], np.float32)
        logits = client.run(ids, hooks=[hook("mlp_act.1", Replace(Constant(mean), units=(7,)))], capture=["logits"])[
            "logits"
        ]
        logits = logits.astype(np.float64)
        logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        own = -np.mean([logp[i, token] for i, token in enumerate(ids[1:])])
        assert _losses(client, rows, [int(rows.block[0])], 7, float(mean[0]), "")[0] == pytest.approx(own, abs=1e-4)
        with pytest.raises(InvalidArgument, match="are latents"):
            causal_check(client, found, replace(rows, site="resid_post.1 (mine)"))
