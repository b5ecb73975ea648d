"""Rows of a longer or shorter input: a position that counts from the end does so in either prompt, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.clients import Client, InvalidArgument, patch
from tests.parity.opened import TOKENS, Opened, both

SITE = "resid_mid.1"
LONG, SHORT = TOKENS, TOKENS[3:12]
N, M = len(LONG), len(SHORT)


def taken(client: Client, own: list[int], source: list[int], **where: Any) -> tuple[Any, Any]:
    """Rows of the one that was patched, and of the one that they came from."""
    hook = patch(SITE, from_input="source", inputs="own", **where)
    run = client.run({"own": own, "source": source}, hooks=hook, capture=SITE)
    return run.inputs["own"][SITE], run.inputs["source"][SITE]


@both
@pytest.mark.parametrize(
    ("where", "ours", "theirs"),
    [
        ({"positions": -1}, [-1], [-1]),
        ({"positions": [-1, 0, -3]}, [-1, 0, -3], [-1, 0, -3]),
        ({"spans": [(-3, None)]}, [-3, -2, -1], [-3, -2, -1]),
        ({"spans": [(-4, -2)]}, [-4, -3], [-4, -3]),
        ({"spans": [(1, 3), (-1, None)]}, [1, 2, -1], [1, 2, -1]),
        ({"positions": [2, 3]}, [2, 3], [2, 3]),
        ({"positions": [2, -1], "source_positions": [-2, 4]}, [2, -1], [-2, 4]),
        ({"positions": -1, "source_positions": 0}, [-1], [0]),
    ],
)
@pytest.mark.parametrize("swap", [False, True])
def test_each_side_its_own(opened: Opened, backend: str, where: Any, ours: Any, theirs: Any, swap: bool) -> None:
    own, source = (SHORT, LONG) if swap else (LONG, SHORT)
    patched, other = taken(opened("llama", backend), own, source, **where)
    np.testing.assert_array_equal(patched[ours], other[theirs])


@both
def test_the_reference_says_so_too(opened: Opened, backend: str) -> None:
    from probewire.backends.reference.sources import named_positions
    from probewire.protos.spec import Span, Where

    client = opened("llama", backend)
    for spans in (((-3, None),), ((-4, -2),), ((1, 3), (-1, None)), ((0, 2),)):
        where = Where(spans=tuple(Span(*span) for span in spans))
        chosen = sorted({p for a, b in spans for p in range(N)[slice(a, b)]})
        named = named_positions(where, chosen, N)
        patched, other = taken(client, LONG, SHORT, spans=spans)
        np.testing.assert_array_equal(patched[chosen], other[named])


@both
def test_what_does_not_fit_names_the_fix(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    with pytest.raises(
        InvalidArgument, match=r"count both from the end, with negative positions, or give the source's own"
    ):
        taken(client, LONG, SHORT, positions=[N - 1])
    with pytest.raises(InvalidArgument, match="the source has 1 rows, but the hook chooses 2 positions"):
        taken(client, LONG, SHORT, positions=[0, 1], source_positions=[3])
    with pytest.raises(InvalidArgument, match=rf"positions \[-{N - M}\] are outside"):
        taken(client, LONG, SHORT, positions=[-N])


@both
def test_in_a_generation(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    hook = patch(SITE, from_input="source", inputs="own", positions=-1)
    found = client.generate({"own": LONG, "source": SHORT}, hooks=hook, capture=SITE, max_new_tokens=3)
    ours, theirs = found.inputs["own"][SITE], found.inputs["source"][SITE]
    np.testing.assert_allclose(ours[N - 1], theirs[M - 1], rtol=1e-4, atol=1e-5)
