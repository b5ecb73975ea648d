"""Batches from the server as they are computed: the model's rows, resumed exactly, and errors that reach the consumer."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.data.collect import collect
from probewire.analysis.sae.data.live import LiveBatches
from probewire.analysis.sae.data.massive import FirstPositions, NormOverMedian
from probewire.clients import Client
from probewire.protos.errors import Cancelled, FailedPrecondition, InvalidArgument

SITE = "resid_post.1"
TEXTS = [f"document {i} " + "some more words " * (i % 4) for i in range(20)]
OPTIONS: dict[str, Any] = {"context": 16, "inputs_a_request": 4, "calibration_tokens": 200}
RULES = (FirstPositions(), NormOverMedian(1.3))


def _live(client: Client, batch_size: int = 32, texts: Any = TEXTS, **more: Any) -> LiveBatches:
    return LiveBatches(client, texts, SITE, batch_size, **{"window_rows": 75, "rules": RULES, **OPTIONS, **more})


def _take(batches: LiveBatches, n: int) -> np.ndarray:
    return np.concatenate([next(batches).numpy() for _ in range(n)])


def test_rows_are_those_that_a_store_holds_epoch_after_epoch(client: Client, tmp_path) -> None:
    import torch

    rows = collect(client, TEXTS, SITE, tmp_path, rules=RULES, **OPTIONS).array()
    with _live(client, shuffle=False) as batches:
        assert batches.d_in == rows.shape[1]
        first = next(batches)
        assert (first.dtype, tuple(first.shape)) == (torch.float32, (32, rows.shape[1]))
        found = np.concatenate([first.numpy(), _take(batches, 2 * len(rows) // 32)])
    np.testing.assert_allclose(found, np.concatenate([rows, rows, rows])[: len(found)], rtol=1e-5, atol=1e-6)


def test_rows_are_shuffled_within_their_window(client: Client) -> None:
    with (
        _live(client, 75, shuffle=False) as plain,
        _live(client, 75, seed=3) as mixed,
        _live(client, 75, seed=4) as other,
    ):
        for _ in range(3):
            a, b, c = next(plain).numpy(), next(mixed).numpy(), next(other).numpy()
            assert not np.array_equal(a, b)
            assert not np.array_equal(b, c)
            np.testing.assert_allclose(np.sort(a, axis=0), np.sort(b, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("taken", [0, 1, 3, 17, 30])
def test_a_resumed_iteration_goes_on_exactly(client: Client, taken: int) -> None:
    with _live(client, seed=2) as first, _live(client, seed=2) as again:
        for _ in range(taken):
            next(first)
        state = json.loads(json.dumps(first.state_dict()))
        next(again)
        again.load_state_dict(state)
        assert again.state_dict() == state
        np.testing.assert_array_equal(_take(again, 12), _take(first, 12))


def test_states_of_other_batches_or_texts_are_refused(client: Client) -> None:
    with _live(client) as batches:
        _take(batches, 8)
        state = batches.state_dict()
    for change, named in (
        ({"seed": 9}, "seed"),
        ({"window_rows": 74}, "window_rows"),
        ({"rules": ()}, "rules"),
        ({"pack": True}, "pack"),
    ):
        with _live(client, **change) as other, pytest.raises(FailedPrecondition, match=named):
            other.load_state_dict(state)
    changed = _live(client, texts=["changed", *TEXTS[1:]])
    with changed, pytest.raises(FailedPrecondition, match="not those that were read before"):
        changed.load_state_dict(state)


def test_the_manifest_says_what_the_stream_is(client: Client) -> None:
    with _live(client) as batches, _live(client) as same, _live(client, rules=()) as other:
        said = json.loads(json.dumps(dict(batches.manifest)))
        assert (said["kind"], said["site"], said["model_hash"]) == ("live", SITE, client.describe().model_hash)
        assert said["rules"][1] == {"rule": "norm_over_median", "times": 1.3}
        assert said["data_hash"] == same.manifest["data_hash"] != other.manifest["data_hash"]


def test_errors_reach_the_consumer_and_the_stream_goes_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with _live(client, seed=1) as whole:
        expected = _take(whole, 12)
    real, broken = client.run, False

    def run(*args: Any, **options: Any) -> Any:
        if broken:
            raise ConnectionError("gone")
        return real(*args, **options)

    monkeypatch.setattr(client, "run", run)
    with _live(client, seed=1) as batches:
        found = [next(batches).numpy()]
        broken = True
        with pytest.raises(ConnectionError, match="gone"):
            found.extend(batch.numpy() for batch in batches)
        with pytest.raises(ConnectionError, match="gone"):
            next(batches)
        broken = False
        found += [next(batches).numpy() for _ in range(12 - len(found))]
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_bad_documents_reach_the_consumer(client: Client) -> None:
    with (
        _live(client, texts=["a fine text", " "]) as batches,
        pytest.raises(InvalidArgument, match=r"texts\[1\] is empty"),
    ):
        next(batches)
    none = _live(client, texts=["text"], rules=(FirstPositions(16),))
    with none, pytest.raises(FailedPrecondition, match="leave out every row"):
        next(none)


def test_an_iterator_ends_with_its_only_epoch(client: Client) -> None:
    with _live(client, texts=iter(TEXTS)) as batches:
        next(batches)
        with pytest.raises(FailedPrecondition, match="was an iterator"):
            _take(batches, 100)


@pytest.mark.parametrize(("ahead", "windows"), [(True, 2), (False, 1), (None, 1)])
def test_how_far_ahead_the_server_works(
    client: Client, monkeypatch: pytest.MonkeyPatch, ahead: bool | None, windows: int
) -> None:
    """Left out: only when it is needed, as this model computes on the cores that training needs."""
    real, rows = client.run, 0

    def run(prompts: Any, **options: Any) -> Any:
        nonlocal rows
        rows += sum(map(len, prompts))
        return real(prompts, **options)

    monkeypatch.setattr(client, "run", run)
    batches = _live(client, 10, window_rows=100, rules=(), calibration_tokens=1, ahead=ahead)
    next(batches)
    batches.close()  # waits for the window that is coming
    assert (windows - 1) * 100 < rows <= windows * (100 + 4 * 16) + 1


def test_closing_ends_the_thread_even_in_the_middle(client: Client) -> None:
    before = threading.active_count()
    batches = _live(client, 10, window_rows=5000)  # far from full
    with ThreadPoolExecutor(1) as consumer:
        waiting = consumer.submit(next, batches)
        batches.close()
        with pytest.raises((Cancelled, FailedPrecondition)):
            waiting.result(20)
    assert threading.active_count() <= before
    batches.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        next(batches)


@pytest.mark.parametrize("change", [{"window_rows": 0}, {"batch_size": 0}, {"inputs_a_request": 0}, {"context": 1}])
def test_bad_options_are_refused(client: Client, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        _live(client, **change)
