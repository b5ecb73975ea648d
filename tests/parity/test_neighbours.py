"""The property that makes a shared box possible: any two requests in one batch come to what each comes to alone."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.parity.beside import MOST, Beside
from tests.parity.harness import load
from tests.tiny_models import FAMILIES, tiny_checkpoint


@pytest.fixture(scope="module", params=["torch", "mlx"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Beside]:
    """In float64, where rounding is no excuse."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        family: Beside(load(request.param, tiny_checkpoint(family, folder), dtype="float64")) for family in FAMILIES
    }


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(family=st.sampled_from(list(FAMILIES)), seed=st.integers(0, 2**32))
def test_any_two_plans_in_one_run(models: dict[str, Beside], family: str, seed: int) -> None:
    worst, what = models[family].run(seed)
    assert worst <= MOST, what


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(family=st.sampled_from(list(FAMILIES)), seed=st.integers(0, 2**32))
def test_any_two_plans_in_one_batch_of_generations(models: dict[str, Beside], family: str, seed: int) -> None:
    worst, what = models[family].generate(seed)
    assert worst <= MOST, what
