"""Noise depends on the seed, the site and the position, on all of their bits, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.backends.noise import noise_row
from probewire.protos.sites import Site

SITES = [Site.parse(name) for name in ("embed", "resid_post.1", "resid_post.0", "z.3")]
"""Keys of some are above 2**63, of others below."""


@pytest.mark.parametrize("site", SITES, ids=str)
def test_every_bit_counts(site: Site) -> None:
    rows = [
        noise_row(seed, at, position, (4,)).tobytes()
        for seed in (0, 1, 2**60, 2**60 + 1, 2**63 - 1)
        for at in SITES
        for position in (0, 1, 4096)
    ]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("site", SITES, ids=str)
def test_a_row_does_not_run_into_the_next_position(site: Site) -> None:
    long, following = noise_row(3, site, 0, (10_000,)), noise_row(3, site, 1, (10_000,))
    assert not np.isin(following[:100], long).any()


def test_a_row_is_standard_normal_float32() -> None:
    row = noise_row(11, SITES[0], 7, (100, 200))
    assert row.dtype == np.float32
    assert row.shape == (100, 200)
    assert abs(row.mean()) < 0.03
    assert abs(row.std() - 1) < 0.03


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("embed", [0.04404714, 0.34009787, -0.72309154, -0.07882371]),
        ("resid_post.1", [-0.9240528, -0.38121605, -0.06182061, 0.13187276]),  # its key is above 2**63
    ],
)
def test_the_draws_never_change(site: str, expected: list[float]) -> None:
    np.testing.assert_allclose(noise_row(7, Site.parse(site), 3, (4,)), expected, rtol=1e-6)
