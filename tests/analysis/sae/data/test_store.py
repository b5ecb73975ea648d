"""A store gives back what was put in, to the bit; it survives a crash anywhere, and refuses what is damaged or foreign."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from probewire.analysis.sae.data import store_writer
from probewire.analysis.sae.data.rows import Rows
from probewire.analysis.sae.data.store import ActivationStore, StoreWriter
from probewire.protos.errors import FailedPrecondition, InvalidArgument, NotFound

D_IN = 6
IDENTITY: dict[str, Any] = {"d_in": D_IN, "dtype": "float32", "model_hash": "abc", "site": "resid_post.1"}
RULES = [{"rule": "first_positions", "n": 1}]


def _values(n: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((n, D_IN)).astype(dtype)
    values[:, 0] = np.arange(n)  # a row tells which it is
    return values


def _rows(n: int) -> Rows:
    """Every tenth is left out."""
    number = np.arange(n, dtype=np.int32)
    rules = np.where(number % 10 == 0, 0, -1).astype(np.int8)
    return Rows.of(
        _values(n), token_ids=number, positions=number % 10, documents=number // 10, offsets=number % 10, rules=rules
    )


def _write(folder: Path, n: int = 100, per_shard: int = 17, **more: Any) -> ActivationStore:
    writer = StoreWriter(folder, **{**IDENTITY, **more}, rows_per_shard=per_shard)
    for start in range(0, n, 23):
        writer.append(_values(n)[start : start + 23])
    writer.finish()
    return ActivationStore.open(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_come_back_as_they_were(tmp_path: Path, dtype: str) -> None:
    store = _write(tmp_path, dtype=dtype)
    stored = _values(100).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert (store.n_tokens, store.d_in, store.dtype, len(store.manifest["shards"])) == (100, D_IN, dtype, 6)
    np.testing.assert_array_equal(store.raw("activations"), stored)
    for part in (slice(0, 5), slice(10, 40), slice(99, None), slice(17, 34)):
        np.testing.assert_array_equal(store.array(part.start, part.stop), stored[part].astype(np.float32))
    with pytest.raises(InvalidArgument, match="no rows"):
        store.array(100, 101)


def test_any_safetensors_reader_opens_a_shard(tmp_path: Path) -> None:
    store = _write(tmp_path, dtype="bfloat16")
    shard = load_file(tmp_path / "shard-00001.safetensors")
    np.testing.assert_array_equal(shard["activations"], store.raw("activations", 17, 34))
    assert shard["activations"].dtype == ml_dtypes.bfloat16


def test_statistics_are_those_of_the_stored_rows(tmp_path: Path) -> None:
    store = _write(tmp_path, dtype="bfloat16")
    rows = store.array().astype(np.float64)
    np.testing.assert_allclose(store.mean, rows.mean(axis=0), rtol=1e-12)
    assert store.mean_norm == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-6)
    assert store.scaling == pytest.approx(D_IN**0.5 / np.linalg.norm(rows, axis=1).mean(), rel=1e-6)
    assert store.manifest["statistics"]["total_variance"] == pytest.approx(rows.var(axis=0).sum(), rel=1e-5)
    scaled = np.linalg.norm(rows * store.scaling, axis=1)
    assert scaled.mean() == pytest.approx(D_IN**0.5, rel=1e-6)


def test_left_out_rows_are_counted_and_traceable(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, **IDENTITY, rules=RULES, rows_per_shard=20)
    rows = _rows(95)
    for start in range(0, 95, 8):
        writer.append(rows[start : start + 8])
    writer.finish()
    store = ActivationStore.open(tmp_path)
    assert store.n_tokens == 85
    assert store.manifest["dropped"] == {"first_positions": 10}
    np.testing.assert_array_equal(store.array()[:, 0], np.flatnonzero(rows.kept))
    kept, dropped = store.rows(), store.dropped()
    np.testing.assert_array_equal(kept.token_ids, np.flatnonzero(rows.kept))
    np.testing.assert_array_equal(kept.documents * 10 + kept.offsets, kept.token_ids)
    np.testing.assert_array_equal(dropped["token_ids"], np.arange(0, 95, 10))
    np.testing.assert_allclose(dropped["norms"], rows.norms[::10])
    np.testing.assert_array_equal(dropped["dimensions"][1:], 0)
    np.testing.assert_allclose(kept.norms, np.linalg.norm(store.array().astype(np.float64), axis=1), rtol=1e-6)


def test_a_last_shard_of_left_out_rows_alone(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, **IDENTITY, rules=RULES, rows_per_shard=9)
    writer.append(_rows(11))
    writer.finish()
    store = ActivationStore.open(tmp_path)
    assert (store.n_tokens, store.manifest["dropped"]) == (9, {"first_positions": 2})
    assert next(store.batches(18)).shape == (18, D_IN)


class _Crash(BaseException):
    """As a kill: nothing of ours handles it."""


def _resume(folder: Path, n: int) -> dict[str, Any]:
    writer = StoreWriter(folder, **IDENTITY, rules=RULES, rows_per_shard=13)
    rows = _rows(n)
    start = 0 if writer.cursor is None else writer.cursor["start"]
    skip = 0 if writer.cursor is None else writer.cursor["row"]
    for begin in range(start, n, 16):
        writer.append(rows[begin + skip : begin + 16], {"start": begin}, first=skip)
        skip = 0
    writer.finish()
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("where", "after"),
    [
        *(("half a shard", n) for n in (0, 1, 6)),
        *(("shard before manifest", n) for n in (0, 1, 4, 7, 8)),
        *(("half a manifest", n) for n in (0, 1, 7, 8)),
    ],
)
def test_a_crash_anywhere_leaves_a_store_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, after: int
) -> None:
    """Seven shards, and a manifest at the start, after each, and at the end."""
    whole = _resume(tmp_path / "whole", 100)
    real_shard, real_json = store_writer.write_shard, store_writer.write_json
    calls = Counter[str]()

    def shard(path: Path, tensors: Any) -> Any:
        calls["shard"] += 1
        if calls["shard"] == after + 1 and where == "half a shard":
            path.with_name(path.name + ".part").write_bytes(b"half")
            raise _Crash
        return real_shard(path, tensors)

    def manifest(path: Path, value: Any) -> None:
        calls["manifest"] += 1
        if calls["manifest"] == after + 1 and where != "half a shard":
            if where == "half a manifest":
                path.with_name(path.name + ".part").write_bytes(b"{")
            raise _Crash
        real_json(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(store_writer, "write_shard", shard)
        patched.setattr(store_writer, "write_json", manifest)
        with pytest.raises(_Crash):
            _resume(tmp_path / "broken", 100)
    assert _resume(tmp_path / "broken", 100) == whole
    assert sorted(p.name for p in (tmp_path / "broken").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )
    ActivationStore.open(tmp_path / "broken").verify()


def test_a_finished_store_is_added_to_as_if_it_had_been_one_run(tmp_path: Path) -> None:
    whole = _resume(tmp_path / "whole", 100)
    _resume(tmp_path / "grown", 60)
    writer = StoreWriter(tmp_path / "grown", **IDENTITY, rules=RULES, rows_per_shard=13)
    assert writer.complete
    with pytest.raises(FailedPrecondition, match="finished"):
        writer.append(_values(1))
    assert ActivationStore.open(tmp_path / "grown").n_tokens == 54, "looking at it changes nothing"
    writer.reopen()
    assert _resume(tmp_path / "grown", 100) == whole


def test_an_unfinished_store_is_not_used_unawares(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, **IDENTITY, rows_per_shard=10)
    with pytest.raises(FailedPrecondition, match="no row is left"):
        writer.finish()
    writer.append(_values(25))
    with pytest.raises(FailedPrecondition, match=r"not complete \(20 tokens so far\)"):
        ActivationStore.open(tmp_path)
    assert ActivationStore.open(tmp_path, allow_incomplete=True).n_tokens == 20


def test_another_models_or_sites_store_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, per_shard=17)
    ActivationStore.open(tmp_path, model_hash="abc", site="blocks.1.hook_resid_post")
    with pytest.raises(FailedPrecondition, match="hash abc, not of xyz"):
        ActivationStore.open(tmp_path, model_hash="xyz")
    with pytest.raises(FailedPrecondition, match=r"activations of resid_post.1, not of resid_post.2"):
        ActivationStore.open(tmp_path, site="resid_post.2")
    for change in (
        {"model_hash": "xyz"},
        {"site": "resid_post.2"},
        {"dtype": "float16"},
        {"d_in": 7},
        {"rules": RULES},
    ):
        with pytest.raises(FailedPrecondition, match=f"something else: it has {next(iter(change))}"):
            StoreWriter(tmp_path, **{**IDENTITY, **change}, rows_per_shard=17)


@pytest.mark.parametrize("kept", [0, 7, 60, -1])
def test_a_file_that_is_cut_while_the_store_is_open(tmp_path: Path, kept: int) -> None:
    store = _write(tmp_path)
    store.verify()
    path = tmp_path / "shard-00002.safetensors"
    whole = path.read_bytes()
    place = store._shards[2]._place("activations", whole[: 8 + int.from_bytes(whole[:8], "little")])
    path.write_bytes(whole[: kept if kept >= 0 else place.stop - 1])
    with store.batches(100) as batches:
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match=r"shard-00002.safetensors (ends too early|is no shard)"):
                next(batches)
        path.write_bytes(whole)
        assert sorted(next(batches)[:, 0].tolist()) == list(range(100)), "nothing is lost"


@pytest.mark.parametrize(
    ("read", "named"),
    [
        (lambda store: store.array(40, 41), "CRC-32"),
        (lambda store: next(store.batches(100)), "CRC-32"),
        (lambda store: store.verify(), "SHA-256"),
    ],
)
def test_a_changed_byte_is_noticed_at_the_first_read(
    tmp_path: Path, read: Callable[[ActivationStore], Any], named: str
) -> None:
    _write(tmp_path)
    path = tmp_path / "shard-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    store = ActivationStore.open(tmp_path)
    np.testing.assert_array_equal(store.array(0, 34), _values(100)[:34])
    with pytest.raises(FailedPrecondition, match=rf"shard-00002.safetensors is not what was written: its {named} is"):
        read(store)


def test_missing_and_cut_files_are_refused_on_opening(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no activation store"):
        ActivationStore.open(tmp_path)
    _write(tmp_path / "s")
    path = tmp_path / "s" / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FailedPrecondition, match=r"has \d+ bytes; the manifest says"):
        ActivationStore.open(tmp_path / "s")
    path.unlink()
    with pytest.raises(FailedPrecondition, match="is missing"):
        ActivationStore.open(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text('{"format": "something"}')
    with pytest.raises(InvalidArgument, match="has the format 'something'"):
        ActivationStore.open(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text("[]")
    with pytest.raises(InvalidArgument, match="not a manifest"):
        ActivationStore.open(tmp_path / "s")


def test_what_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("not yours")
    with pytest.raises(FailedPrecondition, match=r"other files \(mine.txt\)"):
        StoreWriter(tmp_path, **IDENTITY)
    for values, dtype in ((np.full((1, D_IN), np.nan, np.float32), "float32"), (np.full((1, D_IN), 1e6), "float16")):
        writer = StoreWriter(tmp_path / dtype, **{**IDENTITY, "dtype": dtype})
        writer.append(values)
        with pytest.raises(FailedPrecondition, match="store them in a wider dtype"):
            writer.finish()
    with pytest.raises(InvalidArgument, match="width 5"):
        StoreWriter(tmp_path / "c", **IDENTITY).append(np.zeros((2, 5)))
    with pytest.raises(InvalidArgument, match="not 'int32'"):
        StoreWriter(tmp_path / "d", **{**IDENTITY, "dtype": "int32"})
    with pytest.raises(InvalidArgument, match="rows_per_shard"):
        StoreWriter(tmp_path / "e", **IDENTITY, rows_per_shard=0)


def _firsts(batches: Any, n: int) -> list[int]:
    return [int(x) for _ in range(n) for x in next(batches)[:, 0].tolist()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_hold_every_row_once_an_epoch(tmp_path: Path, dtype: str) -> None:
    import torch

    store = _write(tmp_path, dtype=dtype)
    with store.batches(25, seed=1, window_shards=2) as batches:
        kept = [next(batches) for _ in range(12)]
        assert all(batch.dtype == torch.float32 and batch.shape == (25, D_IN) for batch in kept)
        epochs = torch.cat(kept).reshape(3, 100, D_IN).numpy()
    orders = [epoch[:, 0].astype(int).tolist() for epoch in epochs]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    np.testing.assert_array_equal(epochs[0], store.array()[orders[0]])


def test_rows_meet_only_those_of_their_window(tmp_path: Path) -> None:
    with _write(tmp_path).batches(10, seed=2, window_shards=2) as batches:
        order = _firsts(batches, 10)
    shards = [row // 17 for row in order]
    assert len(set(shards[:20])) == 2
    assert shards[:17] != sorted(shards[:17])


def test_without_shuffling_rows_lie_in_order_and_batches_stay_theirs(tmp_path: Path) -> None:
    with _write(tmp_path).batches(10, shuffle=False, window_shards=1) as batches:
        kept = [next(batches) for _ in range(30)]
    assert [int(x) for batch in kept for x in batch[:, 0]] == [*range(100)] * 3


@pytest.mark.parametrize("taken", [0, 1, 3, 4, 9, 21])
def test_a_resumed_iteration_goes_on_exactly(tmp_path: Path, taken: int) -> None:
    store = _write(tmp_path)
    with store.batches(12, seed=4, window_shards=2) as first, store.batches(12, seed=4, window_shards=2) as again:
        _firsts(first, taken)
        state = json.loads(json.dumps(first.state_dict()))
        _firsts(again, 5)
        again.load_state_dict(state)
        assert again.state_dict() == state
        assert _firsts(again, 15) == _firsts(first, 15)


def test_states_of_other_batches_are_refused(tmp_path: Path) -> None:
    store, other = _write(tmp_path / "a"), _write(tmp_path / "b", n=99)
    state = store.batches(12, seed=4, window_shards=2).state_dict()
    for batches, named in (
        (store.batches(13, seed=4, window_shards=2), "batch_size"),
        (store.batches(12, seed=5, window_shards=2), "seed"),
        (store.batches(12, seed=4, window_shards=3), "window_shards"),
        (other.batches(12, seed=4, window_shards=2), "data_hash"),
    ):
        with pytest.raises(FailedPrecondition, match=named):
            batches.load_state_dict(state)
    with pytest.raises(FailedPrecondition, match="fewer"):
        store.batches(12, seed=4, window_shards=2).load_state_dict({**state, "row": 1000})


def test_batches_say_what_they_are_and_close(tmp_path: Path) -> None:
    store = _write(tmp_path)
    batches = store.batches(10)
    said = json.loads(json.dumps(dict(batches.manifest)))
    assert (said["kind"], said["model_hash"], said["site"]) == ("store", "abc", "resid_post.1")
    assert said["data_hash"] == store.manifest["data_hash"]
    batches.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        next(batches)
    with pytest.raises(InvalidArgument, match="window_shards"):
        store.batches(10, window_shards=0)
