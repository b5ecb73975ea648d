"""Scorecards: an SAE that rebuilds everything scores as it must, the untrained one beside it does not, and all is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.sae.model.configs import import_sae_lens
from probewire.analysis.sae.model.loaded import load
from probewire.analysis.sae.scoring.losses import losses
from probewire.analysis.sae.scoring.probe_data import bundled
from probewire.analysis.sae.scoring.probe_rows import prompts_of, read_rows
from probewire.analysis.sae.scoring.scorecard import score
from probewire.analysis.sae.scoring.scorecard_report import Scorecard
from probewire.analysis.sae.scoring.targeted import ablated_in_model, ablated_locally
from probewire.clients import Client, FailedPrecondition, InvalidArgument, capture, reconstruct
from tests.analysis.sae.conftest import SITE

D_IN = 64
TOPIC = bundled("topic", n_train=6, n_test=4)


@pytest.fixture(scope="module")
def contexts(client: Client) -> list[list[int]]:
    """What the model itself goes on with: text that it predicts."""
    return [
        list(client.generate([[256, first]], max_new_tokens=18, temperature=0.0, ignore_eos=True).token_ids)
        for first in (72, 40, 100, 65)
    ]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """relu(x) − relu(−x): an SAE of 2·d_in latents that rebuilds every row."""
    sae_lens = import_sae_lens()
    sae: Any = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=D_IN, d_sae=2 * D_IN, device="cpu"))
    rows = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    sae.W_dec.data, sae.W_enc.data = rows.clone(), rows.T.clone().contiguous()
    sae.cfg.metadata.hook_name = SITE
    sae.cfg.metadata.l0 = float(D_IN)  # as sae-lens notes at the end of a training
    folder = tmp_path_factory.mktemp("identity") / "identity"
    sae.save_model(folder)
    return folder


@pytest.fixture(scope="module")
def other(save_sae: Callable[..., Path]) -> Path:
    return save_sae("topk", D_IN, 96, seed=3, k=8)


@pytest.fixture(scope="module")
def card(client: Client, identity: Path, other: Path, contexts: list[list[int]]) -> Iterator[Scorecard]:
    yield score(
        client, {"identity": identity, "random": other}, contexts, texts=[TOPIC], n_train=4, n_test=4, progress=False
    )
    assert client.saes() == [], "nothing is left on the server"


def test_an_identity_recovers_everything(card: Scorecard) -> None:
    core = card.to_json()["saes"]["identity"]["core"]
    assert core["reconstruction_quality"]["explained_variance"] == pytest.approx(1, abs=1e-9)
    assert core["model_performance_preservation"]["ce_loss_score"] == pytest.approx(1, abs=1e-6)
    assert core["model_behavior_preservation"]["kl_div_score"] == pytest.approx(1, abs=1e-6)
    assert core["sparsity"]["l0"] == pytest.approx(D_IN, abs=0.5)
    assert core["token_stats"] == {"total_tokens_eval_sparsity_variance": 80, "total_tokens_eval_reconstruction": 76}


def test_the_control_is_beside_it(card: Scorecard) -> None:
    assert list(card.entries) == ["identity", "random", "untrained"]
    control = card.entries["untrained"]
    assert control.control
    assert (control.d_in, control.d_sae) == (D_IN, 2 * D_IN)
    saes = card.to_json()["saes"]
    scores = {name: found["core"]["model_performance_preservation"]["ce_loss_score"] for name, found in saes.items()}
    assert scores["identity"] > scores["untrained"]
    assert "| | identity | random | untrained (control) |" in card.markdown()


def test_every_evaluation_is_there(card: Scorecard) -> None:
    for name, found in card.to_json()["saes"].items():
        assert found["sparse_probing"]["sae"]["sae_top_1_test_accuracy"] >= 0
        assert found["sparse_probing"]["llm"] == card.to_json()["saes"]["identity"]["sparse_probing"]["llm"]
        assert found["tpp"]["eval_result_details"][0]["dataset_name"] == "topic"
        assert len(found["scr"]["eval_result_details"]) == 4
        assert "0 of 2014 words are one token" in found["refused"]["absorption"], name
    assert "absorption: 0 of 2014 words are one token" in card.markdown()
    baseline = card.entries["identity"].probing
    assert baseline is not None
    shown = next(row for row in card.rows() if row.label == "probe accuracy, 2 latents")
    assert shown.references["of principal components"] == baseline.accuracy("pca_top_2")
    assert shown.values["identity"] == baseline.accuracy("sae_top_2")
    about = card.to_json()["about"]
    assert about["texts"] == "4 contexts, 80 tokens"
    assert about["losses"] == "spliced in at every position (0 of 80 positions spared)"


def test_it_is_saved(card: Scorecard, tmp_path: Path) -> None:
    folder = card.save(tmp_path / "card")
    assert json.loads((folder / "scorecard.json").read_text()) == card.to_json()
    assert (folder / "scorecard.md").read_text(encoding="utf-8") == card.markdown()
    assert (folder / "scorecard.png").read_bytes().startswith(b"\x89PNG")


def test_the_server_ablates_as_arithmetic_does(client: Client, other: Path) -> None:
    data = read_rows(client, TOPIC, SITE)
    sae = load(other)
    info = client.load_sae(other, site=SITE, name="ablated")
    try:
        inputs = prompts_of(client, TOPIC.test)
        in_model = ablated_in_model(client, inputs, SITE, info.name)
        locally = ablated_locally(sae, data.test.pooled(), data.test.pooled_latents(sae))
        busiest = np.argsort(-data.test.pooled_latents(sae).mean(axis=0))[:6].tolist()
        np.testing.assert_allclose(in_model(busiest), locally(busiest), rtol=1e-3, atol=1e-4)
        assert np.abs(in_model(busiest) - data.test.pooled()).max() > 0.01
    finally:
        client.unload_sae(info.name)


def test_what_is_spliced_in_is_the_reconstruction(client: Client, other: Path, contexts: list[list[int]]) -> None:
    sae = load(other)
    info = client.load_sae(other, site=SITE, name="spliced")
    try:
        rows = client.run([contexts[0]], capture=[SITE]).captures[SITE]
        spliced = client.run([contexts[0]], hooks=[reconstruct(SITE, info.name)], capture=[capture(SITE)])
        np.testing.assert_allclose(spliced.captures[SITE], sae.reconstruct(rows), rtol=1e-3, atol=1e-4)
        found = losses(client, contexts, SITE, [info.name], progress=False)
        assert found.ce_loss_score("spliced").value < 1
    finally:
        client.unload_sae(info.name)


def test_what_cannot_be_scored_is_refused(
    client: Client, identity: Path, other: Path, contexts: list[list[int]], tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match="allowed: core, sparse_probing"):
        score(client, identity, contexts, evaluations=["unlearning"])
    with pytest.raises(InvalidArgument, match="no SAE to score"):
        score(client, [], contexts)
    with pytest.raises(InvalidArgument, match="same name"):
        score(client, [identity, identity], contexts)
    with pytest.raises(InvalidArgument, match="give it another name"):
        score(client, {"untrained": identity}, contexts)
    with pytest.raises(InvalidArgument, match="context_length must be 2"):
        score(client, identity, contexts, context_length=1)
    sae_lens = import_sae_lens()
    fresh = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=D_IN, d_sae=32, device="cpu"))
    fresh.save_model(tmp_path / "fresh")
    with pytest.raises(FailedPrecondition, match="allow_untrained"):
        score(client, tmp_path / "fresh", contexts, site=SITE)
    card = score(
        client,
        tmp_path / "fresh",
        contexts,
        site=SITE,
        allow_untrained=True,
        control=False,
        evaluations=["core"],
        progress=False,
    )
    assert list(card.entries) == ["fresh"]
    assert client.saes() == []
    wide = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=32, d_sae=40, device="cpu"))
    wide.save_model(tmp_path / "wide")
    with pytest.raises(InvalidArgument, match="32"):
        score(client, tmp_path / "wide", contexts, site=SITE, allow_untrained=True, progress=False)
    assert client.saes() == []
