"""Windows from the server against the SAE run here on whole activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.latents import stream as latent_stream
from probewire.analysis.sae.latents.statistics import count_latents
from probewire.analysis.sae.latents.stream import stream_latents
from probewire.analysis.sae.model.loaded import LoadedSae
from probewire.analysis.sae.model.on_server import opened
from probewire.clients import Client, InvalidArgument, SaeInfo
from tests.analysis.sae.conftest import SITE

TEXTS = ["hello there, you", "a", "the second window of this one is shorter" * 2, "xyz"]


@pytest.fixture(scope="module", params=["standard", "topk"])
def both(
    request: pytest.FixtureRequest, client: Client, save_sae: Callable[..., Path]
) -> Iterator[tuple[SaeInfo, LoadedSae]]:
    options: dict[str, Any] = {"k": 6} if request.param == "topk" else {}
    with opened(client, save_sae(request.param, 64, 96, **options)) as found:
        yield found


def expected(client: Client, loaded: LoadedSae, context: int, skip: int) -> list[tuple[int, list[int], np.ndarray]]:
    """(text, token ids, [row, latent]) of every window, from dense activations of the same batch encoded here."""
    parts: list[tuple[int, list[int]]] = []
    for index, text in enumerate(TEXTS):
        ids = list(client.tokenize(text).token_ids)
        parts += [(index, ids[start : start + context]) for start in range(0, len(ids), context)]
    parts = [(index, ids) for index, ids in parts if len(ids) > skip]
    assert len(parts) <= latent_stream.INPUTS_A_REQUEST, "in one batch, as there: batches round in their own way"
    run = client.run({str(i): ids for i, (_, ids) in enumerate(parts)}, capture=SITE)
    rows = [item[SITE].astype(np.float32) for item in run.inputs.values()]
    return [(index, ids, loaded.encode(row)[skip:]) for (index, ids), row in zip(parts, rows, strict=True)]


@pytest.mark.parametrize(("context", "skip"), [(16, 1), (9, 0), (200, 3)])
def test_every_active_latent_comes(client: Client, both: tuple[SaeInfo, LoadedSae], context: int, skip: int) -> None:
    info, loaded = both
    windows = list(stream_latents(client, info, TEXTS, context=context, skip=skip, progress=False))
    oracle = expected(client, loaded, context, skip)
    assert [(w.text, list(w.token_ids)) for w in windows] == [(text, ids) for text, ids, _ in oracle]
    for window, (_, _, latents) in zip(windows, oracle, strict=True):
        assert window.dense(range(96)) == pytest.approx(latents, abs=1e-5)
        assert ((window.dense(range(96)) > 0) == (latents > 0)).all()
        assert window.dense([7, 3]) == pytest.approx(latents[:, [7, 3]], abs=1e-5)
        assert "".join(window.tokens) == client.tokenize(list(window.token_ids)).text


def test_rows_with_more_than_was_asked_for_are_read_again(
    client: Client, both: tuple[SaeInfo, LoadedSae], monkeypatch: pytest.MonkeyPatch
) -> None:
    info, _ = both
    whole = list(stream_latents(client, info, TEXTS, progress=False))
    asked: list[int | None] = []
    run = client.run

    def spy(*args: Any, **options: Any) -> Any:
        asked.append(options["capture"][0].capture.reduce.top_k)
        return run(*args, **options)

    monkeypatch.setattr(latent_stream, "FIRST_TOP_K", 2)
    monkeypatch.setattr(client, "run", spy)
    found = list(stream_latents(client, info, TEXTS, progress=False))
    assert asked == ([6] if info.k else [2, 64])
    for one, two in zip(whole, found, strict=True):
        assert (one.dense(range(96)) == two.dense(range(96))).all()


def test_it_stops_where_enough_was_read(client: Client, both: tuple[SaeInfo, LoadedSae]) -> None:
    found = list(stream_latents(client, both[0], TEXTS, context=8, max_tokens=20, progress=False))
    read = [window.n_rows for window in found]
    assert sum(read) >= 20 > sum(read[:-1])


def test_counts_of_a_corpus(client: Client, both: tuple[SaeInfo, LoadedSae], tmp_path: Path) -> None:
    info, loaded = both
    (tmp_path / "all.jsonl").write_text("\n".join(f'{{"text": "{text}"}}' for text in TEXTS))
    counts = count_latents(client, info, tmp_path / "all.jsonl", context=16, progress=False)
    rows = np.concatenate([latents for _, _, latents in expected(client, loaded, 16, 1)])
    assert counts.n_tokens == len(rows)
    assert (counts.n_fired == (rows > 0).sum(axis=0)).all()
    assert counts.total == pytest.approx(rows.sum(axis=0), rel=1e-4, abs=1e-4)
    assert counts.peak == pytest.approx(rows.max(axis=0), rel=1e-4, abs=1e-5)


def test_refusals(client: Client, both: tuple[SaeInfo, LoadedSae]) -> None:
    info, _ = both
    with pytest.raises(InvalidArgument, match="no documents"):
        list(stream_latents(client, info, [], progress=False))
    with pytest.raises(InvalidArgument, match="no text of more than 30 tokens"):
        list(stream_latents(client, info, ["short"], skip=30, progress=False))
    with pytest.raises(InvalidArgument, match="context must be above skip"):
        list(stream_latents(client, info, TEXTS, context=1, progress=False))
    with pytest.raises(InvalidArgument, match="is a int, not text"):
        list(stream_latents(client, info, ["a text", 3], progress=False))
