"""From texts to a store over a real server: rows are the model's, and a killed collection ends as an uninterrupted one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.data.collect import collect
from probewire.analysis.sae.data.massive import FirstPositions, NormOverMedian
from probewire.analysis.sae.data.store import ActivationStore
from probewire.clients import Client, capture
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from tests.tiny_models import tiny_checkpoint

SITE = "resid_post.1"
TEXTS = [f"document {i} " + "some more words " * (i % 4) for i in range(30)]
OPTIONS: dict[str, Any] = {"context": 16, "inputs_a_request": 4, "rows_per_shard": 100, "calibration_tokens": 200}


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def test_rows_are_those_that_the_model_gives(client: Client, tmp_path: Path) -> None:
    store = collect(client, TEXTS, SITE, tmp_path, rules=(), **OPTIONS)
    rows = store.rows()
    for document in (0, 3, 29):
        ids = client.tokenize(TEXTS[document]).token_ids
        mine = rows[rows.documents == document]
        assert mine.token_ids.tolist() == [ids[offset] for offset in mine.offsets]
        pieces = [list(ids[i : i + 16]) for i in range(0, len(ids), 16)]
        direct = np.concatenate([client.run(piece, capture=SITE)[SITE] for piece in pieces if len(piece) > 1])
        np.testing.assert_allclose(mine.values, direct, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(mine.positions, mine.offsets % 16)
    info = client.describe()
    assert (store.model_hash, store.site, store.dtype, store.d_in) == (info.model_hash, SITE, "float32", info.d_model)
    corpus = store.manifest["corpus"]
    assert (corpus["documents"], corpus["exhausted"], corpus["description"]["kind"]) == (30, True, "texts")
    assert (store.manifest["context"], store.manifest["pack"]) == (16, False)


def test_rules_leave_rows_out_and_the_manifest_says_so(client: Client, tmp_path: Path) -> None:
    whole = collect(client, TEXTS, SITE, tmp_path / "all", rules=(), **OPTIONS).rows()
    store = collect(client, TEXTS, SITE, tmp_path / "some", rules=(FirstPositions(2), NormOverMedian(1.1)), **OPTIONS)
    median = store.manifest["median_norm"]
    kept = (whole.positions >= 2) & (whole.norms <= 1.1 * median)
    np.testing.assert_array_equal(store.rows().values, whole.values[kept])
    assert store.manifest["dropped"] == {
        "first_positions": int((whole.positions < 2).sum()),
        "norm_over_median": int(((whole.positions >= 2) & (whole.norms > 1.1 * median)).sum()),
    }
    assert store.manifest["dropped"]["norm_over_median"] > 0
    assert store.manifest["rules"] == [{"rule": "first_positions", "n": 2}, {"rule": "norm_over_median", "times": 1.1}]


def test_heads_lie_side_by_side_and_a_narrower_dtype_is_kept(client: Client, tmp_path: Path) -> None:
    store = collect(client, TEXTS[:3], "z.1", tmp_path, rules=(), dtype="bfloat16", **OPTIONS)
    direct = client.run(TEXTS[0], capture="z.1")["z.1"]
    assert store.dtype == "bfloat16"
    assert store.d_in == direct[0].size
    rows = store.array(0, len(direct))
    np.testing.assert_allclose(rows, direct.reshape(len(direct), -1), rtol=2**-8, atol=1e-6)


def test_packed_rows_see_across_documents(client: Client, tmp_path: Path) -> None:
    store = collect(client, TEXTS[:4], SITE, tmp_path, rules=(), pack=True, **OPTIONS)
    ids = [i for text in TEXTS[:4] for i in client.tokenize(text).token_ids]
    assert store.raw("token_ids").tolist() == ids
    direct = client.run(ids[16:32], capture=[capture(SITE)])[SITE]
    np.testing.assert_allclose(store.array(16, 32), direct, rtol=1e-4, atol=1e-5)


def test_n_tokens_are_kept_and_more_are_added(client: Client, tmp_path: Path) -> None:
    whole = collect(client, TEXTS, SITE, tmp_path / "one", n_tokens=350, **OPTIONS)
    assert whole.n_tokens == 350
    assert not whole.manifest["corpus"]["exhausted"]
    assert collect(client, TEXTS, SITE, tmp_path / "two", n_tokens=130, **OPTIONS).n_tokens == 130
    collect(client, TEXTS, SITE, tmp_path / "two", n_tokens=350, **OPTIONS)
    assert _manifest(tmp_path / "two") == _manifest(tmp_path / "one")
    with pytest.raises(FailedPrecondition, match="already holds 350 tokens, more than the 100"):
        collect(client, TEXTS, SITE, tmp_path / "two", n_tokens=100, **OPTIONS)
    everything = collect(client, TEXTS, SITE, tmp_path / "two", **OPTIONS)
    assert everything.n_tokens > 350
    fresh = collect(client, TEXTS, SITE, tmp_path / "three", **OPTIONS)
    assert _manifest(tmp_path / "two") == _manifest(tmp_path / "three")
    with pytest.raises(FailedPrecondition, match=f"ended after {fresh.n_tokens} of 5,000"):
        collect(client, TEXTS, SITE, tmp_path / "three", n_tokens=5000, **OPTIONS)
    assert ActivationStore.open(tmp_path / "three").n_tokens == fresh.n_tokens


def test_a_finished_store_is_given_at_once(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = collect(client, TEXTS, SITE, tmp_path, n_tokens=150, **OPTIONS)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = collect(client, TEXTS, SITE, tmp_path, n_tokens=150, **OPTIONS)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert again.manifest == first.manifest


@pytest.mark.parametrize("after", [1, 3, 5, 7])
def test_a_failing_server_costs_nothing_but_the_shard_in_hand(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    collect(client, TEXTS, SITE, tmp_path / "whole", n_tokens=400, **OPTIONS)
    real, calls = client.run, 0

    def run(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise ConnectionError("gone")
        return real(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(client, "run", run)
        with pytest.raises(ConnectionError):
            collect(client, TEXTS, SITE, tmp_path / "broken", n_tokens=400, **OPTIONS)
    collect(client, TEXTS, SITE, tmp_path / "broken", n_tokens=400, **OPTIONS)
    assert _manifest(tmp_path / "broken") == _manifest(tmp_path / "whole")


KILLED = """
import json, sys, time
from probewire.clients import Client
from probewire.analysis.sae.data.collect import collect
from probewire.server.worker.inprocess import InProcessService
model, folder, texts, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
with Client.inprocess(InProcessService.create(model, backend="torch", dtype="float32", device="cpu")) as client:
    real = client.run
    def slow(*args, **more):
        time.sleep(0.05)
        return real(*args, **more)
    client.run = slow
    collect(client, texts, "resid_post.1", folder, progress=False, **options)
"""


def test_a_killed_process_resumes_to_the_same_store(client: Client, tmp_path: Path) -> None:
    """kill -9 in the middle of a collection, then the same call again in another process."""
    model = tiny_checkpoint("llama", tmp_path)
    whole = collect(client, TEXTS, SITE, tmp_path / "whole", **OPTIONS)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(model), str(folder), json.dumps(TEXTS), json.dumps(OPTIONS)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not (folder / "shard-00001.safetensors").exists():
        assert child.poll() is None, child.stderr and child.stderr.read().decode()[-2000:]
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    if child.stderr:
        child.stderr.close()
    done = _manifest(folder)
    assert not done["complete"]
    assert 1 <= len(done["shards"]) < len(whole.manifest["shards"])
    with pytest.raises(FailedPrecondition, match="not complete"):
        ActivationStore.open(folder)
    again = collect(client, TEXTS, SITE, folder, **OPTIONS)
    assert again.manifest["data_hash"] == whole.manifest["data_hash"]
    assert _manifest(folder) == _manifest(tmp_path / "whole")
    again.verify()


def test_another_collections_folder_is_refused(client: Client, tmp_path: Path) -> None:
    collect(client, TEXTS, SITE, tmp_path, n_tokens=150, **OPTIONS)
    for change, named in (
        ({"context": 8}, "context"),
        ({"pack": True}, "pack"),
        ({"rules": ()}, "rules"),
        ({"inputs_a_request": 5}, "inputs_a_request"),
        ({"dtype": "float16"}, "dtype"),
        ({"calibration_tokens": 201}, "calibration_tokens"),
    ):
        with pytest.raises(FailedPrecondition, match=f"store of something else: it has .*{named}"):
            collect(client, TEXTS, SITE, tmp_path, **{"n_tokens": 150, **OPTIONS, **change})
    with pytest.raises(FailedPrecondition, match="it has site"):
        collect(client, TEXTS, "resid_post.0", tmp_path, n_tokens=150, **OPTIONS)
    with pytest.raises(FailedPrecondition, match="not those that were read before"):
        collect(client, ["something else", *TEXTS[1:]], SITE, tmp_path, n_tokens=150, **OPTIONS)


def test_another_models_store_is_refused(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    collect(client, TEXTS, SITE, tmp_path, n_tokens=150, **OPTIONS)
    info = replace(client.describe(), model_hash="0" * 64)
    monkeypatch.setattr(client, "describe", lambda model="": info)
    with pytest.raises(FailedPrecondition, match="it has model_hash"):
        collect(client, TEXTS, SITE, tmp_path, n_tokens=150, **OPTIONS)


@pytest.mark.parametrize("site", ["attn_probs.1", "resid_post.7", "resid_post", "nothing.1"])
def test_sites_without_rows_of_one_width_are_refused(client: Client, tmp_path: Path, site: str) -> None:
    with pytest.raises(InvalidArgument, match=r"site"):
        collect(client, TEXTS, site, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_layer_that_is_none_is_named(client: Client, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgument, match=r"site resid_post.99 does not exist; resid_post has layers 0 … \d+ on this model"
    ):
        collect(client, TEXTS, "resid_post.99", tmp_path / "s")


def test_bad_corpora_are_refused_with_their_place(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="holds no documents"):
        collect(client, [], SITE, tmp_path / "a")
    with pytest.raises(InvalidArgument, match=r"texts\[1\] is empty"):
        collect(client, ["a text", ""], SITE, tmp_path / "b")
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidArgument, match=r"bad.txt is not UTF-8 at byte 3"):
        collect(client, tmp_path / "bad.txt", SITE, tmp_path / "c")
    with pytest.raises(InvalidArgument, match="n_tokens"):
        collect(client, TEXTS, SITE, tmp_path / "d", n_tokens=0)
    with pytest.raises(FailedPrecondition, match="no row is left"):
        collect(client, TEXTS, SITE, tmp_path / "e", rules=(FirstPositions(16),), **OPTIONS)
    assert collect(client, TEXTS, SITE, tmp_path / "e", rules=(), n_tokens=10, **OPTIONS).n_tokens == 10, "nothing lost"
