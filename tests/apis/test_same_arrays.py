"""One request, every API: the same arrays to the bit, the same tokens, text and log-probabilities."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import pytest

from probewire.clients import (
    Add,
    Client,
    FromInput,
    Hook,
    Input,
    Mean,
    Message,
    Plan,
    Replace,
    Sampling,
    TopK,
    Where,
    capture,
    steer,
)
from probewire.protos.gradients import GradientsRequest, IntegratedPath
from probewire.protos.metrics import Coordinate, Kl, LogitDifference, LogProb, Target, TopLogits
from probewire.protos.model import GenerateRequest, RunRequest
from probewire.protos.spec import Capture
from probewire.protos.sweeps import SweepRequest
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.apis.answers import Answer, require_same
from tests.apis.serving import BACKENDS, ENGINE, LIMITS, Served
from tests.apis.ways import GENERATE_ONLY, WAYS, Request, client_answer, raw_grpc

CLEAN, CORRUPT = "When Mary and John went on", "When John and Mary went on"
"""Longer than the server's chunk of 16 tokens."""
VECTOR = np.linspace(-1, 1, 64, dtype=np.float32)
SAMPLING = Sampling(max_new_tokens=8, temperature=0.8, seed=1, logprobs=3)

READS = (
    capture("resid_post.*", id="stream"),
    capture("z.1"),
    capture("attn_probs.1"),
    capture("logits", reduce=TopK(5)),
    capture("resid_post.1", reduce=Mean(), id="mean"),
)
STEERED = Plan((steer("resid_post.0", VECTOR, alpha=3.0, id="steering"), *READS))
PATCHED = Plan(
    (
        Hook("resid_post.0", edit=Replace(FromInput("0")), where=Where(phase="prompt"), inputs=("1",)),
        Hook("resid_mid.1", edit=Add(VECTOR, 2.0), where=Where(positions=(-1,))),
        *READS,
    )
)

GRADIENTS = Plan(
    (
        steer("resid_post.0", VECTOR, alpha=0.5),
        capture("mlp_act.*", id="value"),
        Hook("mlp_act.*", capture=Capture(gradient=True), id="gradient"),
        Hook("attn_scores.1", capture=Capture(gradient=True, dtype="float16"), where=Where(positions=(3, -1))),
        Hook("logits", capture=Capture(gradient=True, reduce=TopK(4)), id="top"),
        Hook("embed", capture=Capture(gradient=True, reduce=Mean()), id="mean"),
    )
)
ALONG = Plan(tuple(Hook(site, capture=Capture(gradient=True), id=site) for site in ("embed", "z.2")))
PAIR = (Input(CLEAN, name="0"), Input(CORRUPT, name="1"))
SOURCED = (Input(CLEAN, name="0"), Input(CORRUPT, name="1", source_only=True))
SWEPT = tuple(
    Plan((Hook(f"resid_pre.{layer}", edit=Replace(FromInput("1")), where=Where(positions=(position,))),))
    for layer in range(3)
    for position in range(1, 20, 3)
)

REQUESTS: dict[str, Request] = {
    "text": GenerateRequest((Input(CLEAN),), plan=STEERED, sampling=SAMPLING),
    "chat": GenerateRequest((Input(messages=(Message("user", CLEAN),)),), plan=STEERED, sampling=SAMPLING),
    "patched": GenerateRequest((Input(CLEAN, name="0"), Input(CORRUPT, name="1")), plan=PATCHED, sampling=SAMPLING),
    "run": RunRequest((Input(CLEAN, name="0"), Input(CORRUPT, name="1")), plan=PATCHED),
    "gradients": GradientsRequest(
        PAIR,
        (Target(TopLogits(5, -2, centred=True), ("0",)), Target(Coordinate("mlp_act.1", 4, 9), ("1",))),
        plan=GRADIENTS,
        rules=("ln", "half"),
        direct=True,
    ),
    "path": GradientsRequest(SOURCED, (Target(Kl("1")),), plan=ALONG, path=IntegratedPath("1", 3)),
    "sweep": SweepRequest(
        SOURCED,
        (Target(LogitDifference((5,), (9, 30))), Target(LogProb(7, -3))),
        (*SWEPT, Plan()),
        base=Plan((steer("resid_post.0", VECTOR, alpha=0.5),)),
    ),
}
"""The names of two prompts are those that OpenAI's completions give them."""
MEASURES = ("gradients", "path", "sweep")
PAIRS = [
    pytest.param(way, name, id=f"{way}-{name}")
    for name, request in REQUESTS.items()
    for way in WAYS
    if isinstance(request, GenerateRequest) or way not in GENERATE_ONLY
]
"""OpenAI's dialect has no runs."""


@pytest.fixture(scope="module")
def expected(served: Served) -> dict[tuple[str, str], Answer]:
    """What plain gRPC gives, by model and request."""
    return {
        (model, name): raw_grpc(served, replace(request, model=model))
        for model in BACKENDS
        for name, request in REQUESTS.items()
    }


@pytest.fixture(scope="module", params=BACKENDS)
def inprocess(request: pytest.FixtureRequest, served: Served) -> Generator[Client]:
    """The same model in this process, with the server's own sizes."""
    config = WorkerConfig(str(served.folder), request.param, backend=request.param, engine=ENGINE, limits=LIMITS)
    model_hash = Client(f"grpc://{served.grpc}").describe(request.param).model_hash
    with Client.inprocess(InProcessService(LocalModel(config, served.folder, model_hash=model_hash))) as client:
        yield client


def test_the_requests_do_what_they_say(expected: dict[tuple[str, str], Answer]) -> None:
    for (_, name), answer in expected.items():
        if name in MEASURES:
            continue
        assert {rows.id for rows in answer.arrays.values()} >= {"stream", "mean"}
        sites = [key.site for key in answer.arrays if key.input == next(iter(REQUESTS[name].inputs)).name]
        assert len(sites) == 3 + 1 + 1 + 2 + 1
        if name != "run":
            assert all(len(tokens) == 8 for tokens in answer.tokens.values())
            for token in (token for tokens in answer.tokens.values() for token in tokens):
                assert token.id in [top.id for top in token.top], "the sampled token is named, likeliest or not"
                assert len(token.top) in (3, 4)


def test_what_is_measured_is_there(expected: dict[tuple[str, str], Answer]) -> None:
    for model in BACKENDS:
        found = expected[model, "gradients"]
        parts = [(key.site, key.part) for key in found.arrays if key.input == "0"]
        values, gradients = ([(f"mlp_act.{layer}", part) for layer in range(3)] for part in ("", "gradient"))
        whole = [("attn_scores.1", "gradient"), ("embed", "gradient")]
        top = [("logits", "gradient_value"), ("logits", "gradient_index")]
        assert sorted(parts) == sorted([*values, *gradients, *whole, *top])
        assert {name: values.shape for name, values in found.measured.items()} == {"0": (1, 1), "1": (1, 1)}
        assert expected[model, "path"].measured["0"].shape == (3, 1)
        assert expected[model, "path"].measured["0"][0, 0] == pytest.approx(0.0, abs=1e-5), "it begins at the other"
        swept = expected[model, "sweep"].measured
        assert {name: values.shape for name, values in swept.items()} == {"0": (len(SWEPT) + 1, 2)}
        assert (swept["0"].std(axis=0) > 1e-3).all()
        for answer in (expected[model, name] for name in MEASURES):
            assert all(np.isfinite(rows.array.astype(np.float64)).all() for rows in answer.arrays.values())


@pytest.mark.parametrize(("way", "name"), PAIRS)
def test_every_face_gives_the_same(
    served: Served, expected: dict[tuple[str, str], Answer], model: str, way: str, name: str
) -> None:
    found = WAYS[way](served, replace(REQUESTS[name], model=model))
    require_same(found, expected[model, name], openai=way in GENERATE_ONLY)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_model_in_this_process_gives_the_same(
    inprocess: Client, expected: dict[tuple[str, str], Answer], name: str
) -> None:
    model = inprocess.describe().backend
    require_same(client_answer(inprocess, REQUESTS[name]), expected[model, name])
