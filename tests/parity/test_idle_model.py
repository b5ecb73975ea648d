"""What a forward captured does not stay on the device once it has been handed out."""

from __future__ import annotations

import gc

import pytest
import torch

from probewire.backends.hooks.base import Backend
from probewire.protos.edits import Scale
from probewire.protos.spec import Capture, Condition, Hook, Norm, Plan, Where
from tests.parity.harness import generate, load, run, sequence
from tests.tiny_models import tiny_checkpoint

TOKENS = list(range(20, 33))
PLAN = Plan(
    (
        Hook("resid_post.*", capture=Capture()),
        Hook("z.1", capture=Capture(reduce=Norm())),
        Hook("mlp_out.1", edit=Scale(0.5), capture=Capture(), where=Where(when=Condition(0.0, unit=3))),
    )
)


@pytest.fixture(scope="module", params=["torch", "mlx"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return load(request.param, tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny")))


def _held(backend: Backend) -> list[object]:
    executor = getattr(backend, "executor")  # noqa: B009 - not part of the protocol
    engine = backend.engine
    forwards = [*getattr(engine, "pending", ()), *getattr(engine, "slots", ()), *getattr(engine, "producing", ())]
    return [*executor.slots, *executor.collector.entries, *executor.collector.whole, *forwards]


def test_nothing_is_kept_after_a_run_or_a_generation(backend: Backend) -> None:
    run(backend, TOKENS, PLAN)
    assert not _held(backend)
    generate(backend, [sequence(backend, TOKENS, PLAN, mode="generate", max_new=3)])
    assert not _held(backend)
    gc.collect()
    alive = [x for x in gc.get_objects() if type(x) is torch.Tensor and x.ndim >= 2 and len(TOKENS) in x.shape]
    assert not alive, [tuple(x.shape) for x in alive]
