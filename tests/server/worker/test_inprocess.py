"""A model in this process: closed from another thread, and no more kept of a forward than was asked for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends.model.limits import Limits
from probewire.clients import Client, Input
from probewire.protos.edits import FromInput, Replace
from probewire.protos.spec import Capture, Hook, Where
from probewire.protos.tensors import Array
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from probewire.server.worker.output.delivery import ActiveRequest
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="module", params=["torch", "mlx"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    engine = Limits(n_slots=2, context_tokens=256, cache_tokens=512, chunk_tokens=16)
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny", backend=request.param, engine=engine), folder)
    yield made
    made.close()


def test_closing_from_another_thread_ends_a_wait_and_cancels(model: LocalModel) -> None:
    standing, go_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        standing.set()
        go_on.wait(20)

    client, engine = Client(service=InProcessService(model)), model.backend.engine
    assert engine is not None
    steps: list[str] = []

    def read() -> None:
        for step in stream:
            steps.append(step.text)  # noqa: PERF401  seen from outside as it grows

    with ThreadPoolExecutor(1) as pool:
        stream = client.stream("When Mary and John", max_new_tokens=200, ignore_eos=True)
        try:
            model.scheduler.later(stand_still)
            assert standing.wait(20)
            rest = pool.submit(read)
            end_s = time.monotonic() + 20
            while len(steps) < sum(sequence.n_generated for sequence in engine.active):
                assert time.monotonic() < end_s, "what has been sampled arrives"
                time.sleep(0.01)
            stream.close()
            rest.result(20)  # although the model stands still
            assert len(steps) < 200
            assert stream.finished == {}
        finally:
            go_on.set()
    assert model.scheduler.call(lambda: list(engine.active)) == [], "it was cancelled before this question came"
    assert len(client.generate("When Mary", max_new_tokens=2, ignore_eos=True).only.new) == 2


EVERYTHING = Hook("resid_post.*", capture=Capture(), inputs=("greedy",))
LONG = " ".join(["When Mary and John went to the store"] * 4)


def held(arrays: Iterable[Array]) -> tuple[int, int]:
    """Bytes of arrays, and of what they keep alive."""
    wholes, own = dict[int, int](), 0
    for array in arrays:
        own += array.nbytes
        while isinstance(array.base, np.ndarray):
            array = array.base
        wholes[id(array)] = array.nbytes
    return own, sum(wholes.values())


@pytest.mark.parametrize("generates", [False, True])
def test_what_is_stored_keeps_no_neighbours_captures_alive(
    model: LocalModel, generates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Hook("resid_post.0", capture=Capture(store=True), where=Where(positions=(0,)), inputs=("modest",))
    seen: list[tuple[int, int]] = []
    gather = ActiveRequest._kept

    def looked_at(job: ActiveRequest, output: Any) -> Any:
        seen.append(held(rows.values for rows in output.kept))
        return gather(job, output)

    monkeypatch.setattr(ActiveRequest, "_kept", looked_at)
    client = Client(service=InProcessService(model))
    prompts = {"greedy": LONG, "modest": "When"}
    if generates:
        client.generate(prompts, hooks=[EVERYTHING, kept], max_new_tokens=3, ignore_eos=True)
    else:
        client.run(prompts, hooks=[EVERYTHING, kept])
    assert seen == [(4 * 64, 4 * 64)], "one row of float32"


def test_rows_that_other_inputs_read_keep_no_neighbours_captures_alive(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    take = ActiveRequest.take_source_rows

    def looked_at(job: ActiveRequest, item: Any, result: Any) -> None:
        take(job, item, result)
        rows = [row for sites in job.prepared.rows.values() for found in sites.values() for row in found.values()]
        seen.append(held(rows))

    monkeypatch.setattr(ActiveRequest, "take_source_rows", looked_at)
    patch = Hook(
        "resid_post.0", edit=Replace(FromInput("clean", (1,))), where=Where(positions=(1,)), inputs=("corrupt",)
    )
    inputs = {"greedy": LONG, "clean": Input("When Mary", source_only=True), "corrupt": "When John"}
    Client(service=InProcessService(model)).run(inputs, hooks=[EVERYTHING, patch])
    assert seen == [(4 * 64, 4 * 64)]


def test_a_script_that_closes_nothing_ends_well(tmp_path: Path) -> None:
    """It was seen to end with abort (exit status 134): a thread of the model still had a stream of MLX's."""
    folder = tiny_checkpoint("llama", tmp_path)
    script = (
        "from probewire.clients import Client\n"
        "from probewire.server.worker.inprocess import InProcessService\n"
        f"service = InProcessService.create({str(folder)!r}, backend='mlx', dtype='float32', device='cpu')\n"
        "client = Client.inprocess(service)\n"
        "print(client.run([[1, 2, 3]], capture=['final_norm'])['final_norm'].shape)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stdout) == (0, "(3, 64)\n"), ended.stderr
