"""The page of an SAE on the tiny model: its numbers against the SAE run here on whole activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.dashboard.dashboard import Steering, dashboard
from probewire.analysis.sae.model.loaded import load
from probewire.clients import Client, InvalidArgument, NotFound, edit_latents
from tests.analysis.sae.conftest import SITE
from tests.analysis.sae.dashboard.test_page import data_of
from tests.analysis.sae.planted_letters import save_untrained_sae

TEXTS = ["hello there, you two", "the second text of this corpus, with many letters in it", "abc" * 12]


@pytest.fixture(scope="module")
def folder(client: Client, save_sae: Callable[..., Path]) -> Path:
    return save_sae("topk", 64, 48, k=4)


def test_its_numbers(client: Client, folder: Path, tmp_path: Path) -> None:
    steering = Steering(["abc"], latents=2, strengths=(1.0,), max_new_tokens=3)
    out = dashboard(client, folder, TEXTS, tmp_path / "sae.html", context=16, steering=steering, progress=False)
    page = data_of(out.read_text(encoding="utf-8"))
    sae = load(folder)
    windows: list[tuple[list[int], np.ndarray]] = []
    for text in TEXTS:
        ids = list(client.tokenize(text).token_ids)
        for start in range(0, len(ids), 16):
            part = ids[start : start + 16]
            latents = sae.encode(client.run(part, capture=SITE)[SITE].astype(np.float32))
            latents[0] = 0
            if len(part) > 1:
                windows.append((part, latents))
    n = sum(len(ids) - 1 for ids, _ in windows)
    rows = np.concatenate([latents for _, latents in windows])
    assert page["about"]["tokens"] == n
    assert page["about"]["latents at a token, on average"] == "4.0"
    assert page["fired"] == (rows > 0).sum(axis=0).tolist()
    assert page["density"] == pytest.approx((rows > 0).sum(axis=0) / n, rel=1e-3)
    assert page["max"] == pytest.approx(rows.max(axis=0), rel=1e-3, abs=1e-9)
    unit = sae.w_dec / np.linalg.norm(sae.w_dec, axis=1, keepdims=True)
    for latent in range(48):
        strongest = sorted((float(latents[:, latent].max()) for _, latents in windows), reverse=True)
        told = [example[2] for example in page["top"][latent]]
        assert told == pytest.approx([value for value in strongest if value > 0][:8], rel=1e-2)
        assert page["strong"][latent] == pytest.approx(np.median(told) if told else 0, rel=1e-2)
        cosine = unit @ unit[latent]
        cosine[latent] = -1
        assert page["near"][latent][0] == cosine.argmax()
    most = int(np.lexsort((np.arange(48), -(rows > 0).mean(axis=0)))[0])
    strong = float(np.median(sorted((float(latents[:, most].max()) for _, latents in windows), reverse=True)[:8]))
    raised = edit_latents(SITE, "again", {most: {"add": strong}}, spans=[(1, None)])
    client.load_sae(folder, name="again")
    plain = client.generate("abc", max_new_tokens=3).text
    moved = client.generate("abc", hooks=[raised], max_new_tokens=3).text
    client.unload_sae("again")
    assert [(strength, text) for _, strength, _, text in page["steered"][str(most)]] == [(0, plain), (1, moved)]
    assert len(page["steered"]) == 2
    assert client.saes() == []


def test_some_latents_and_a_title(client: Client, folder: Path, tmp_path: Path) -> None:
    fresh = save_untrained_sae(tmp_path / "fresh", site=SITE)
    out = dashboard(
        client,
        fresh,
        TEXTS,
        tmp_path / "some.html",
        latents=[7, 3],
        title="Two of them",
        corpus="letters",
        progress=False,
    )
    page = data_of(out.read_text(encoding="utf-8"))
    assert (page["title"], page["ids"], page["about"]["corpus"]) == ("Two of them", [3, 7], "letters")
    assert len(page["promoted"]) == len(page["top"]) == 2
    assert (page["about"]["SAE"], page["about"]["trained"]) == ("fresh", "no, as far as can be told")


def test_off_the_residual_stream_there_are_no_promoted_tokens(
    client: Client, save_sae: Callable[..., Path], tmp_path: Path
) -> None:
    sae = save_sae("standard", 96, 24, site="mlp_act.1")
    page = data_of(dashboard(client, sae, TEXTS, tmp_path / "act.html", progress=False).read_text(encoding="utf-8"))
    assert page["promoted"] is None
    assert "not added to the residual stream" in page["notes"][0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latents": [48]}, "latents must be in 0 … 47"),
        ({"latents": []}, "at least one"),
        ({"texts": []}, "no documents"),
        ({"steering": Steering([])}, "at least one prompt"),
        ({"n_examples": 0}, "n_top must be 1 or more"),
    ],
)
def test_refusals(client: Client, folder: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    given = {"texts": TEXTS, **options}
    with pytest.raises(InvalidArgument, match=said):
        dashboard(client, folder, given.pop("texts"), tmp_path / "no.html", progress=False, **given)
    assert not (tmp_path / "no.html").exists()


def test_an_sae_that_is_not_there(client: Client, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no folder here"):
        dashboard(client, "nobody", TEXTS, tmp_path / "no.html")
