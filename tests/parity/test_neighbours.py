"""The property that makes a shared box possible: any two requests in one batch come to what each comes to alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.parity.beside import MOST, Beside
from tests.parity.harness import load, stack_caches
from tests.tiny_models import FAMILIES, tiny_checkpoint

Models = dict[str, Beside]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    return {family: tiny_checkpoint(family, folder) for family in FAMILIES}


@pytest.fixture(scope="module", params=["torch", "mlx"])
def models(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Models:
    """In float64, where rounding is no excuse."""
    return {family: Beside(load(request.param, folder, dtype="float64")) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> Models:
    """Of the engine that takes sequences one after another."""
    loaded = {family: load("torch", folder, dtype="float64") for family, folder in folders.items()}
    assert all(backend.generate_alone("a test of it") for backend in loaded.values())
    return {family: Beside(backend) for family, backend in loaded.items()}


@pytest.fixture(scope="module")
def stacked(folders: dict[str, Path]) -> Models:
    """Of the engine whose batches are of the library's own caches."""
    loaded = {family: load("torch", folder, dtype="float64") for family, folder in folders.items()}
    for backend in loaded.values():
        stack_caches(backend)
    return {family: Beside(backend) for family, backend in loaded.items()}


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


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(family=st.sampled_from(list(FAMILIES)), seed=st.integers(0, 2**32))
def test_any_two_plans_of_generations_one_after_another(alone: Models, family: str, seed: int) -> None:
    worst, what = alone[family].generate(seed)
    assert worst == 0.0, what


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(family=st.sampled_from(list(FAMILIES)), seed=st.integers(0, 2**32))
def test_any_two_plans_of_generations_with_stacked_caches(stacked: Models, family: str, seed: int) -> None:
    worst, what = stacked[family].generate(seed)
    assert worst <= MOST, what
