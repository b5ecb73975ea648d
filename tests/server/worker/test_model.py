"""A tiny real model behind the scheduler: patching between inputs, stored captures, stop strings, cancellation, limits."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from probewire.backends.model.limits import Limits
from probewire.clients import Client
from probewire.protos.edits import Add, FromInput, Replace, Scale, Stored
from probewire.protos.errors import InvalidArgument, NotFound, ResourceExhausted
from probewire.protos.model import (
    Event,
    Finished,
    GenerateRequest,
    Input,
    RunRequest,
    Sampling,
    Started,
    TensorFrame,
    Token,
)
from probewire.protos.spec import Capture, Hook, Last, Plan, Where
from probewire.server.auth.callers import local_caller
from probewire.server.config import RequestLimits, WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from probewire.server.worker.output.delivery import ActiveRequest
from probewire.server.worker.output.sinks import QueueSink
from tests.tiny_models import tiny_checkpoint

LIMITS = RequestLimits(max_store_bytes=100_000, max_capture_bytes=1_000_000, max_new_tokens=400, max_queued=4)
ENGINE = Limits(n_slots=2, context_tokens=256, cache_tokens=512, chunk_tokens=16)
CLEAN, CORRUPT = "When Mary and John", "When John and Mary"
N_CLEAN = len(CLEAN) + 1
"""Tokens: a byte each, after the beginning-of-text token."""


@pytest.fixture(scope="module", params=["torch", "mlx"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    config = WorkerConfig(model=str(folder), id="tiny", backend=request.param, engine=ENGINE, limits=LIMITS)
    made = LocalModel(config, folder)
    yield made
    made.close()


@pytest.fixture
def service(model: LocalModel) -> InProcessService:
    return InProcessService(model)


def test_a_tokenizer_that_cannot_be_read_is_refused_before_the_weights_are(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama", tmp_path), tmp_path / "copy"))
    (folder / "tokenizer.json").write_text("{")
    config = WorkerConfig(model=str(folder), id="tiny", backend="torch")
    with (
        mock.patch("probewire.server.worker.model.load_backend", side_effect=AssertionError("weights were read")),
        pytest.raises(InvalidArgument, match="tokenizer"),
    ):
        LocalModel(config, folder)


@pytest.fixture
def client(service: InProcessService) -> Client:
    return Client(service=service)


def _frames(events: list[Event]) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    return {(e.input, e.sites[0]): e.tensor.numpy()[0] for e in events if isinstance(e, TensorFrame)}


def _run(
    service: InProcessService, hooks: tuple[Hook, ...], **texts: str
) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    inputs = tuple(Input(text, name=name) for name, text in texts.items())
    return _frames(list(service.run(RunRequest(inputs, plan=Plan(hooks)))))


LOGITS = Hook("logits", capture=Capture())


def test_patching_all_of_the_first_residual_gives_the_clean_logits(service: InProcessService) -> None:
    patch = Hook("resid_pre.0", edit=Replace(FromInput("clean")), inputs=("corrupt",))
    found = _run(service, (patch, LOGITS), clean=CLEAN, corrupt=CORRUPT)
    assert np.abs(found["clean", "logits"] - found["corrupt", "logits"]).max() <= 1e-4
    plain = _run(service, (LOGITS,), corrupt=CORRUPT)
    assert np.abs(plain["corrupt", "logits"] - found["corrupt", "logits"]).max() > 1e-2


def test_a_source_is_read_after_its_own_edits(service: InProcessService) -> None:
    hooks = (
        Hook("resid_post.0", edit=Scale(2.0), inputs=("clean",)),
        Hook(
            "resid_post.0",
            edit=Replace(FromInput("clean", positions=(1,))),
            inputs=("corrupt",),
            where=Where(positions=(3,)),
        ),
        Hook("resid_post.0", capture=Capture()),
    )
    found = _run(service, hooks, clean=CLEAN, corrupt=CORRUPT)
    assert np.array_equal(found["corrupt", "resid_post.0"][3], found["clean", "resid_post.0"][1])


def test_chained_inputs_and_circles(service: InProcessService) -> None:
    def reads(source: str, target: str) -> Hook:
        return Hook("resid_post.1", edit=Replace(FromInput(source)), inputs=(target,))

    last = Hook("resid_post.1", capture=Capture())
    found = _run(service, (reads("a", "b"), reads("b", "c"), last), a=CLEAN, b=CORRUPT, c="When Lucy and Mark")
    assert np.array_equal(found["a", "resid_post.1"], found["c", "resid_post.1"])
    with pytest.raises(InvalidArgument, match="circle"):
        _run(service, (reads("a", "b"), reads("b", "a"), last), a=CLEAN, b=CORRUPT)


def test_patching_while_generating(service: InProcessService) -> None:
    """A source-only input is patched into the prompt of a generation: the same as patching its capture inline."""
    where = Where(phase="prompt")
    hook = Hook("resid_post.1", edit=Replace(FromInput("clean")), where=where, inputs=("corrupt",))
    inputs = (Input(CLEAN, name="clean", source_only=True), Input(CORRUPT, name="corrupt"))
    sampling = Sampling(max_new_tokens=6, ignore_eos=True)
    events = list(service.generate(GenerateRequest(inputs, plan=Plan((hook,)), sampling=sampling)))
    rows = _run(service, (Hook("resid_post.1", capture=Capture()),), clean=CLEAN)["clean", "resid_post.1"]
    from probewire.protos.edits import Inline

    inline = Hook("resid_post.1", edit=Replace(Inline(rows)), where=where)
    again = list(service.generate(GenerateRequest((Input(CORRUPT),), plan=Plan((inline,)), sampling=sampling)))
    ids = [[e.id for e in stream if isinstance(e, Token)] for stream in (events, again)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 6


def test_replacing_a_site_by_its_own_capture_is_bit_identical(client: Client) -> None:
    sites = ["resid_pre.1", "attn_in.1", "q.1", "k.0", "z.1", "attn_out.0", "mlp_act.2", "resid_mid.1", "final_norm"]
    plain = client.run(CLEAN, capture=[*sites, "logits"])
    for site in sites:
        hook = Hook(site, edit=Replace(Stored(_store(client, site))))
        assert np.array_equal(client.run(CLEAN, hooks=[hook], capture=["logits"])["logits"], plain["logits"]), site
    for item in client.captures():
        client.delete_capture(item.id)


def _store(client: Client, site: str) -> str:
    [kept] = client.run(CLEAN, hooks=[Hook(site, capture=Capture(store=True))]).only.stored
    return kept.id


def test_stored_captures_are_bounded_and_forgotten(client: Client, model: LocalModel) -> None:
    capture_id = _store(client, "resid_post.1")
    assert client.capture(capture_id).shape == (N_CLEAN, 64)
    client.delete_capture(capture_id)
    with pytest.raises(NotFound, match=capture_id):
        client.capture(capture_id)
    with pytest.raises(ResourceExhausted, match="of the box's"):
        client.run("x" * 200, hooks=[Hook("resid_post.*", capture=Capture(store=True))])
    assert model.store.used_bytes() == 0


def test_zero_ablating_neurons_equals_zeroing_columns_of_down_proj(client: Client) -> None:
    from probewire.protos.edits import Zeros

    units = (3, 17, 40)
    hooks = [
        Hook("mlp_act.1", edit=Replace(Zeros(), units=units), capture=Capture()),
        Hook("mlp_out.1", capture=Capture()),
    ]
    found = client.run(CLEAN, hooks=hooks)
    weight = np.array(client.weights("model.layers.1.mlp.down_proj.weight"))
    weight[:, list(units)] = 0
    plain = client.run(CLEAN, capture=["mlp_act.1"])
    assert np.abs(plain["mlp_act.1"] @ weight.T - found["mlp_out.1"]).max() <= 1e-5


def test_low_rank_equals_the_edited_weight(client: Client) -> None:
    from probewire.protos.edits import LowRank

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(96, 2)).astype(np.float32), rng.normal(size=(2, 64)).astype(np.float32)
    found = client.run(CLEAN, hooks=[Hook("mlp_out.1", edit=LowRank(a, b, 0.5), capture=Capture())])
    act = client.run(CLEAN, capture=["mlp_act.1"])["mlp_act.1"]
    weight = client.weights("model.layers.1.mlp.down_proj.weight") + 0.5 * (a @ b).T
    expected = act @ weight.T
    assert np.abs(found["mlp_out.1"] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_stop_strings_end_the_text_before_them(client: Client) -> None:
    whole = client.generate(CLEAN, max_new_tokens=40, temperature=1.0, seed=4, ignore_eos=True)
    text = whole.text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    cut = client.generate(CLEAN, max_new_tokens=40, temperature=1.0, seed=4, ignore_eos=True, stop=[stop])
    assert cut.text == text[: text.index(stop)]
    assert cut.only.finished is not None
    assert cut.only.finished.reason == "stop"
    never = client.generate(CLEAN, max_new_tokens=12, temperature=1.0, seed=4, ignore_eos=True, stop=["\x00never\x00"])
    assert never.text == text[: len(never.text)]
    assert len(never.only.new) == 12


def test_held_back_text_comes_with_the_last_token(client: Client) -> None:
    """Text that might begin a stop string is kept back; an end for another reason must give it out."""
    plain = client.generate(CLEAN, max_new_tokens=3, temperature=1.0, seed=4, ignore_eos=True).text
    last = Hook("resid_post.0", capture=Capture(reduce=Last()))
    held = client.generate(
        CLEAN, max_new_tokens=3, temperature=1.0, seed=4, ignore_eos=True, stop=[plain + "?"], hooks=[last]
    )
    assert held.text == plain


def test_a_cancelled_request_frees_its_cache(service: InProcessService, model: LocalModel) -> None:
    engine = model.backend.engine
    assert engine is not None
    stream = service.generate(GenerateRequest((Input(CLEAN),), sampling=Sampling(max_new_tokens=200, ignore_eos=True)))
    assert isinstance(next(stream), Started)
    assert isinstance(next(stream), Token)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
    _until(lambda: not engine.active)


def test_a_slow_reader_is_held_back_alone(service: InProcessService, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reader stops reading; its backlog stays bounded while another finishes."""
    import probewire.server.worker.output.delivery as delivery

    monkeypatch.setattr(delivery, "HIGH_WATER_BYTES", 20_000)
    monkeypatch.setattr(delivery, "LOW_WATER_BYTES", 5_000)
    everything = Plan((Hook("resid_post.*", capture=Capture()),))
    long = Sampling(max_new_tokens=150, ignore_eos=True)
    slow = service.generate(GenerateRequest((Input(CLEAN),), plan=everything, sampling=long))
    assert isinstance(next(slow), Started)
    quick = list(service.generate(GenerateRequest((Input(CORRUPT),), sampling=long)))
    assert isinstance(quick[-1], Finished)
    rest = list(slow)
    tokens = [e.index for e in rest if isinstance(e, Token)]
    assert tokens == list(range(150)), "held back, not lost"
    rows = [p for e in rest if isinstance(e, TensorFrame) for p in e.positions]
    assert rows == list(range(N_CLEAN + 149))


def test_more_requests_than_slots_all_finish(service: InProcessService) -> None:
    done: list[int] = []

    def one(index: int) -> None:
        request = GenerateRequest((Input(f"{CLEAN} {index}"),), sampling=Sampling(max_new_tokens=10, ignore_eos=True))
        done.append(sum(isinstance(e, Token) for e in service.generate(request)))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert done == [10] * 5


def test_a_full_queue_says_when_to_come_back(model: LocalModel) -> None:
    request = GenerateRequest((Input(CLEAN),), sampling=Sampling(max_new_tokens=200, ignore_eos=True))
    jobs: list[ActiveRequest] = []

    def fill() -> None:
        while len(jobs) < 200:
            jobs.append(model.submit(request, QueueSink(model.scheduler), local_caller()))
            model.scheduler.call(lambda: None)  # it counts once the model's thread has taken it

    with pytest.raises(ResourceExhausted, match="waiting") as caught:
        fill()
    assert caught.value.retry_after_s
    for job in jobs:
        model.scheduler.cancel(job)
    _until(lambda: model.backend.engine is not None and not model.backend.engine.active)


BAD = [
    ({"plan": Plan((Hook("resid_post.9", capture=Capture()),))}, "layers 0:3"),
    ({"plan": Plan((Hook("router_logits.0", capture=Capture()),))}, "has no site router_logits"),
    ({"plan": Plan((Hook("resid_post.0", edit=Add([1.0, 2.0])),))}, r"needs \[64\]"),
    ({"plan": Plan((Hook("resid_post.0", edit=Scale(2.0), where=Where(positions=(99,))),))}, "position 99"),
    ({"plan": Plan((Hook("z.0", edit=Scale(2.0, heads=(4,))),))}, "head 4"),
    ({"plan": Plan((Hook("module:model.nowhere:output", capture=Capture()),))}, "no module"),
    ({"inputs": (Input(""),)}, "at least one token"),
    ({"inputs": (Input("x" * 300),)}, "at most 256"),
    ({"inputs": (Input(token_ids=(9999,)),)}, "vocabulary"),
    ({"plan": Plan((Hook("logits", edit=Scale(2.0), inputs=("nobody",)),))}, "no inputs"),
]


def test_a_stored_capture_that_is_not_there_is_not_found(service: InProcessService) -> None:
    plan = Plan((Hook("resid_post.0", edit=Replace(Stored("cap-x"))),))
    with pytest.raises(NotFound, match="no stored capture 'cap-x'"):
        list(service.run(RunRequest((Input(CLEAN),), plan=plan)))


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_requests_are_refused_before_anything_runs(service: InProcessService, change: Any, message: str) -> None:
    run = replace(RunRequest((Input(CLEAN),)), **change)
    with pytest.raises(InvalidArgument, match=message):
        list(service.run(run))
    with pytest.raises(InvalidArgument, match=message):
        list(service.generate(GenerateRequest(run.inputs, plan=run.plan, sampling=Sampling(max_new_tokens=4))))
    good = list(
        service.generate(GenerateRequest((Input(CLEAN),), sampling=Sampling(max_new_tokens=2, ignore_eos=True)))
    )
    assert isinstance(good[-1], Finished), "the next request is served"


def test_limits(service: InProcessService) -> None:
    with pytest.raises(InvalidArgument, match="positions"):
        list(service.generate(GenerateRequest((Input("x" * 100),), sampling=Sampling(max_new_tokens=300))))
    with pytest.raises(InvalidArgument, match="limit of 400"):
        list(service.generate(GenerateRequest((Input("x"),), sampling=Sampling(max_new_tokens=401))))
    with pytest.raises(ResourceExhausted, match="about"):
        list(
            service.run(
                RunRequest(
                    (Input("x" * 250),),
                    plan=Plan((Hook("attn_probs.*", capture=Capture()), Hook("logits", capture=Capture()))),
                )
            )
        )


def _until(condition: Any, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
