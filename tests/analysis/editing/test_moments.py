"""Moments against sums over captured rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.editing import Moments, second_moment
from probewire.analysis.sae.data.massive import TokenIds
from probewire.clients import Client
from probewire.protos.errors import FailedPrecondition, InvalidArgument, NotFound

TEXTS = [f"{word} went over the hill number {i} and saw a {word}" for i, word in enumerate(("fox", "owl", "hare") * 4)]


def close(found: Any, expected: Any) -> None:
    """Within 1e-5 of the largest value, as everywhere (float32 on the server)."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


def rows_of(client: Client, site: str) -> list[Any]:
    return [np.asarray(client.run(text, capture=[site])[site], dtype=np.float64) for text in TEXTS]


def test_they_are_sums_over_the_rows_that_stay(tiny: Client) -> None:
    found = second_moment(tiny, TEXTS, ["mlp_act.1", "z.0"], progress=False)
    for site in ("mlp_act.1", "z.0"):
        rows = np.concatenate([one.reshape(len(one), -1)[1:] for one in rows_of(tiny, site)])
        assert found[site].n == len(rows)
        assert found[site].left_out == len(TEXTS)
        close(found[site].mean, rows.mean(axis=0))
        close(found[site].second, rows.T @ rows / len(rows))
        close(found[site].covariance, np.cov(rows.T, bias=True))
    whole = second_moment(tiny, TEXTS, "mlp_act.1", skip_massive=False, progress=False)["mlp_act.1"]
    assert whole.n == found["mlp_act.1"].n + len(TEXTS)
    assert whole.left_out == 0


def test_backends_agree(clients: dict[str, Client]) -> None:
    one, other = (second_moment(client, TEXTS, "mlp_act.1", progress=False) for client in clients.values())
    close(one["mlp_act.1"].second, other["mlp_act.1"].second)
    assert one.corpus_hash == other.corpus_hash


def test_it_stops_at_so_many_tokens(tiny: Client) -> None:
    found = second_moment(tiny, TEXTS, "mlp_act.1", max_tokens=101, progress=False)["mlp_act.1"]
    assert found.n + found.left_out == 101
    assert not found.enough
    other = second_moment(tiny, [*TEXTS[:-1], "other"], "mlp_act.1", progress=False)
    assert other.corpus_hash != second_moment(tiny, TEXTS, "mlp_act.1", progress=False).corpus_hash


def test_a_file_holds_all_of_it(tiny: Client, tmp_path: Path) -> None:
    found = second_moment(tiny, TEXTS, "mlp_act.*", progress=False)
    read = Moments.load(found.save(tmp_path / "moments.safetensors"))
    assert list(read.sites) == [f"mlp_act.{layer}" for layer in range(3)]
    for name, one in found.sites.items():
        np.testing.assert_array_equal(read[name].second, one.second)
        assert read[name].n == one.n
    assert (read.model_hash, read.corpus_hash, read.rules) == (found.model_hash, found.corpus_hash, found.rules)
    assert read.rules[0] == {"rule": "first_positions", "n": 1}
    assert str(read).count("rows") == 3
    with pytest.raises(NotFound, match=r"no moments of mlp_act\.7"):
        read["mlp_act.7"]
    other = tiny.run("x", capture=["embed"]).save(tmp_path / "result.safetensors")
    with pytest.raises(InvalidArgument, match="not written by"):
        Moments.load(other)


def test_moments_of_another_model_are_refused(tiny: Client) -> None:
    found = second_moment(tiny, TEXTS, "mlp_act.1", progress=False)
    info = tiny.describe()
    assert found.of_model(info) is found
    wrong = Moments(found.sites, "x", "sha256:0", "", ())
    with pytest.raises(FailedPrecondition, match="take them anew"):
        wrong.of_model(info)


def test_what_is_refused(tiny: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"no row of mlp_act\.1 is left"):
        second_moment(tiny, TEXTS, "mlp_act.1", rules=[TokenIds(tuple(range(261)))], progress=False)
    with pytest.raises(InvalidArgument, match="max_tokens"):
        second_moment(tiny, TEXTS, "mlp_act.1", max_tokens=1)
