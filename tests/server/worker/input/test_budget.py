"""What a request's tensors are said to come to, against what they come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from probewire.protos.errors import ResourceExhausted
from probewire.protos.model import Input, RunRequest, TensorFrame
from probewire.protos.spec import Capture, Gather, Hook, Norm, Plan, TopK
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.tiny_models import tiny_checkpoint

UP = "module:model.layers.1.mlp.up_proj:output"
HOOKS = [
    Hook("resid_post.*", capture=Capture()),
    Hook(UP, capture=Capture()),
    Hook("module:model.layers.0.self_attn.k_proj:output", capture=Capture()),
    Hook("module:model.layers.0.mlp.down_proj:input", capture=Capture(dtype="float16")),
    Hook("module:model.layers.0:output", capture=Capture()),
    Hook(UP, capture=Capture(reduce=TopK(3))),
    Hook(UP, capture=Capture(reduce=Gather((1, 2)))),
    Hook(UP, capture=Capture(reduce=Norm())),
    Hook("attn_probs.0", capture=Capture()),
    Hook("mlp_act.*", capture=Capture()),
]


@pytest.fixture(scope="module", params=["torch", "mlx"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny", backend=request.param), folder)
    yield made
    made.close()


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: f"{hook.site}-{type(hook.capture.reduce).__name__}")
def test_a_capture_is_counted_as_what_it_is(model: LocalModel, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    service, asked = InProcessService(model), RunRequest((Input("When Mary and John"),), plan=Plan((hook,)))
    frames = [event for event in service.run(asked) if isinstance(event, TensorFrame)]
    size = sum(frame.tensor.numpy().nbytes for frame in frames)
    assert size > 0
    exact, plain = model.config.limits, model.config
    for limit, fits in ((size, True), (size - 1, False)):
        monkeypatch.setattr(model, "config", replace(plain, limits=replace(exact, max_capture_bytes=limit)))
        if fits:
            list(service.run(asked))
        else:
            with pytest.raises(ResourceExhausted, match=f"about {size:,} bytes"):
                list(service.run(asked))
