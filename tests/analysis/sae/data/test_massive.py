"""Massive rows are counted where they are, and rules that are plain data leave them out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from probewire.analysis.sae.data.collect import collect, detect_massive
from probewire.analysis.sae.data.massive import (
    DEFAULT_RULES,
    FirstPositions,
    MassiveDetector,
    NormOverMedian,
    Rule,
    TokenIds,
    apply_rules,
    rules_data,
    rules_from_data,
)
from probewire.analysis.sae.data.rows import Rows
from probewire.clients import Client
from probewire.protos.errors import InvalidArgument

SITE = "resid_post.1"
TEXTS = ["a text of some words", "another one, a little longer than that", "and a third"]


def _planted() -> Rows:
    """40 rows of norm about 4 in ten sequences; those at position 0 have 1000 in unit 3, and one other 500 in unit 5."""
    values = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    positions = np.tile(np.arange(4, dtype=np.int32), 10)
    values[positions == 0, 3] = -1000
    values[22, 5] = 500
    return Rows.of(values, positions=positions, token_ids=np.where(positions == 0, 7, 9), documents=np.arange(40) // 4)


def test_a_planted_outlier_is_found_with_its_place() -> None:
    rows = _planted()
    detector = MassiveDetector(float(np.median(rows.norms)))
    for start in range(0, 40, 7):  # in parts, as a stream comes
        detector.update(rows[start : start + 7])
    report = detector.report()
    assert (report.n_tokens, report.n_massive) == (40, 11)
    assert dict(report.positions) == {0: 10, 2: 1}
    assert dict(report.token_ids) == {7: 10, 9: 1}
    assert dict(report.dimensions) == {3: 10, 5: 1}
    assert report.norms == pytest.approx((500, 1000, 1000), rel=1e-3)
    assert report.max_norm == pytest.approx(1000, rel=1e-3)
    assert report.squared_norm_share == pytest.approx(1 - 29 * 16 / (10 * 1000**2 + 500**2), abs=2e-5)
    assert report.examples[10] == {
        "norm": pytest.approx(500, rel=1e-3),
        "position": 2,
        "token_id": 9,
        "dimension": 5,
        "document": 5,
        "offset": -1,
    }
    assert "11 of 40 rows (27.500%)" in str(report)
    assert json.loads(json.dumps(report.data()))["n_massive"] == 11


def test_ordinary_rows_are_not_massive() -> None:
    rows = Rows.of(np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32))
    detector = MassiveDetector(float(np.median(rows.norms)))
    detector.update(rows)
    assert detector.report().n_massive == 0
    assert "the greatest is" in str(detector.report())
    assert MassiveDetector(1.0).report().n_tokens == 0


@pytest.mark.parametrize(
    ("rules", "left_out"),
    [
        ((), {}),
        ((FirstPositions(),), {0: 10}),
        ((FirstPositions(2),), {0: 20}),
        ((NormOverMedian(),), {0: 11}),
        ((NormOverMedian(150.0),), {0: 10}),
        (DEFAULT_RULES, {0: 10, 1: 1}),
        ((NormOverMedian(), FirstPositions()), {0: 11}),
        ((TokenIds((7, 8)), NormOverMedian()), {0: 10, 1: 1}),
    ],
)
def test_the_first_rule_that_applies_leaves_a_row_out(rules: tuple[Rule, ...], left_out: dict[int, int]) -> None:
    rows = _planted()
    found = apply_rules(rules, rows, float(np.median(rows.norms)))
    assert {i: int((found == i).sum()) for i in sorted(set(found.tolist()) - {-1})} == left_out


def test_rules_are_plain_data() -> None:
    rules = (FirstPositions(2), TokenIds((3, 4)), NormOverMedian(5))
    data = json.loads(json.dumps(rules_data(rules)))
    assert data == [
        {"rule": "first_positions", "n": 2},
        {"rule": "token_ids", "ids": [3, 4]},
        {"rule": "norm_over_median", "times": 5.0},
    ]
    assert rules_from_data(data) == rules


@pytest.mark.parametrize(
    "data", [[{"rule": "last"}], [{"n": 1}], [{"rule": "first_positions", "m": 1}], [{"rule": "token_ids"}]]
)
def test_unknown_rules_are_refused(data: list[dict[str, object]]) -> None:
    with pytest.raises(InvalidArgument, match="no rule"):
        rules_from_data(data)


def test_bad_rules_are_refused() -> None:
    for n in (0, -1, 1.5, True):
        with pytest.raises(InvalidArgument, match="first_positions"):
            FirstPositions(n)
    for times in (1, 0, -3, float("nan"), float("inf"), True):
        with pytest.raises(InvalidArgument, match="over 1"):
            NormOverMedian(times)
        with pytest.raises(InvalidArgument, match="over 1"):
            MassiveDetector(1.0, times)
    for ids in ((), (-1,), ("a",)):
        with pytest.raises(InvalidArgument, match="token_ids"):
            TokenIds(ids)
    with pytest.raises(InvalidArgument, match="each once"):
        rules_data((FirstPositions(), FirstPositions(2)))
    with pytest.raises(InvalidArgument, match="give FirstPositions"):
        rules_data(({"rule": "first_positions"},))
    with pytest.raises(InvalidArgument, match="median"):
        MassiveDetector(float("nan"))


def test_a_site_is_looked_over_without_storing(client: Client) -> None:
    """Of the same rows, and so with the same figures, as a direct run gives."""
    report = detect_massive(client, TEXTS, SITE, times=1.2, context=16, calibration_tokens=10_000)
    ids = [client.tokenize(text).token_ids for text in TEXTS]
    pieces = [list(found[i : i + 16]) for found in ids for i in range(0, len(found), 16) if len(found[i : i + 16]) > 1]
    run = client.run(pieces, capture=SITE)
    norms = np.concatenate([np.linalg.norm(item[SITE].astype(np.float64), axis=1) for item in run.inputs.values()])
    assert report.n_tokens == len(norms)
    assert report.median_norm == pytest.approx(np.median(norms), rel=1e-5)
    assert report.n_massive == int((norms > 1.2 * np.median(norms)).sum()) > 0
    assert detect_massive(client, TEXTS, SITE, context=16, n_tokens=20).n_tokens == 20


def test_a_store_reports_what_it_left_out_too(client: Client, tmp_path) -> None:
    rules = (FirstPositions(), NormOverMedian(1.3))
    options = {"context": 16, "calibration_tokens": 10_000}
    store = collect(client, TEXTS, SITE, tmp_path / "a", rules=rules, **options)
    bare = collect(client, TEXTS, SITE, tmp_path / "b", rules=(), **options)
    told, live = store.massive(1.3), detect_massive(client, TEXTS, SITE, times=1.3, **options)
    assert told.n_massive == live.n_massive > 0
    assert told.positions == live.positions
    assert told.dimensions == live.dimensions
    assert told.squared_norm_share == pytest.approx(live.squared_norm_share)
    assert [e["norm"] for e in told.examples] == [e["norm"] for e in live.examples]
    assert bare.massive(1.3).n_massive == live.n_massive
    assert store.n_tokens + sum(store.manifest["dropped"].values()) == live.n_tokens
    assert store.manifest["dropped"]["norm_over_median"] == sum(n for p, n in live.positions.items() if p != 0)
    assert (store.raw("norms") <= 1.3 * live.median_norm).all()
