"""AsyncClient on a real server: over both APIs it gives what Client gives, and who is cancelled leaves nothing running."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from probewire.clients import (
    AsyncClient,
    Client,
    FailedPrecondition,
    InvalidArgument,
    LogProb,
    ablate,
    capture,
    patch,
)
from tests.apis.serving import DEADLINE_S, Served, eventually
from tests.saes import write_sae

PROMPT = "When Mary and John"
LONG = 2400
"""New tokens: with its prompt it takes nearly the whole cache."""


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, served: Served) -> str:
    return f"grpc://{served.grpc}" if request.param == "grpc" else served.http


@pytest.fixture
def client(url: str) -> Generator[Client]:
    with Client(url, timeout_s=DEADLINE_S) as client:
        yield client


def sampled(client: Client, model: str) -> int:
    """Tokens that a model has sampled so far."""
    return next(item.status.tokens for item in client.activity().models if item.id == model)


def running(client: Client) -> int:
    """Requests that the server has under way, and sequences in its workers."""
    report = client.activity()
    return len(report.requests) + sum(item.status.running + item.status.waiting for item in report.models)


def test_it_gives_what_client_gives(url: str, client: Client, model: str) -> None:
    hooks, target = [ablate("mlp_out.1", positions=-1)], LogProb(5)
    plans = [[patch("resid_post.0", value=0.0, positions=p)] for p in range(3)]

    async def work() -> None:
        async with AsyncClient(url, timeout_s=DEADLINE_S) as mine:
            run, swept, found = await asyncio.gather(  # at once, on one connection
                mine.run(PROMPT, hooks=hooks, capture=["resid_post.*"], model=model),
                mine.sweep(PROMPT, target, plans, model=model, progress=False),
                mine.gradients(PROMPT, target, at="mlp_act.1", model=model),
            )
            other = client.run(PROMPT, hooks=hooks, capture=["resid_post.*"], model=model)
            np.testing.assert_array_equal(run.stack("resid_post"), other.stack("resid_post"))
            other = client.sweep(PROMPT, target, plans, model=model, progress=False)
            np.testing.assert_array_equal(swept.array().values, other.array().values)
            other = client.gradients(PROMPT, target, at="mlp_act.1", model=model)
            np.testing.assert_array_equal(found.gradients["mlp_act.1"], other.gradients["mlp_act.1"])

            asked = {"capture": "resid_post.2", "max_new_tokens": 5, "temperature": 0.8, "seed": 3, "model": model}
            made, other = await mine.generate(PROMPT, **asked), client.generate(PROMPT, **asked)
            assert (made.token_ids, made.text) == (other.token_ids, other.text)
            np.testing.assert_array_equal(made["resid_post.2"], other["resid_post.2"])
            async with mine.session([steer_away()], model=model) as live:
                async with mine.stream(PROMPT, session=live, **asked) as stream:
                    steps = [step async for step in stream]
                steered = client.generate(PROMPT, hooks=[steer_away()], **asked)
                assert [step.token and step.token.id for step in steps] == [token.id for token in steered.only.new]
                np.testing.assert_array_equal(stream.result["resid_post.2"], steered["resid_post.2"])
            assert await mine.sessions() == []

    asyncio.run(work())


def steer_away():
    return patch("resid_post.1", value=0.25, positions=-1)


@pytest.mark.parametrize("how", ["leaves the stream", "is cancelled in a stream", "is cancelled in a call"])
def test_who_goes_leaves_nothing_running(url: str, client: Client, model: str, how: str) -> None:
    before = sampled(client, model)

    async def work() -> None:
        async with AsyncClient(url, timeout_s=DEADLINE_S) as mine:
            asked = {"model": model, "max_new_tokens": LONG, "ignore_eos": True}
            if how == "leaves the stream":
                async with mine.stream(PROMPT, **asked) as stream:
                    await anext(stream)
            else:
                begun = asyncio.Event()

                async def read() -> None:
                    async for _ in mine.stream(PROMPT, **asked):
                        begun.set()

                task = asyncio.ensure_future(read() if "stream" in how else mine.generate(PROMPT, **asked))
                if "stream" in how:
                    await begun.wait()
                else:
                    await asyncio.to_thread(eventually, lambda: running(client) > 0, "it runs")
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await asyncio.to_thread(eventually, lambda: running(client) == 0, "nothing runs")

    asyncio.run(work())
    assert sampled(client, model) - before < LONG // 2, "it was ended, and did not come to its end"


def test_saes(url: str, client: Client, model: str, tmp_path: Path) -> None:
    folder, wide = write_sae(tmp_path / "planets", "topk"), write_sae(tmp_path / "wide", d_in=48)

    async def work() -> None:
        async with AsyncClient(url, timeout_s=DEADLINE_S) as mine:
            for upload in (True, False):
                with pytest.raises(InvalidArgument, match=r"reads rows 48 wide, resid_post\.1 of .* is 64 wide"):
                    await mine.load_sae(wide, upload=upload, model=model)
            with pytest.raises(InvalidArgument, match=r"cfg\.json and no sae_weights"):
                await mine.load_sae(tmp_path, upload=True, model=model)
            info = await mine.load_sae(folder, upload=True, model=model)
            with pytest.raises(FailedPrecondition, match="you have an SAE 'planets'"):
                await mine.load_sae(folder, model=model)
            assert info in client.saes(model=model)
            hook = capture("resid_post.1", latents="planets", top_k=8)
            rows = (await mine.run(PROMPT, capture=hook, model=model)).captures.latents("resid_post.1")
            other = client.run(PROMPT, capture=hook, model=model).captures.latents("resid_post.1")
            np.testing.assert_array_equal(rows.values, other.values)
            await mine.unload_sae("planets", model=model)
            with pytest.warns(UserWarning, match="was trained at resid_post.1") as told:
                await mine.load_sae(folder, site="resid_post.0", name="here", model=model)
            with pytest.warns(UserWarning, match="was trained at resid_post.1") as other:
                client.load_sae(folder, site="resid_post.0", name="there", model=model)
            assert {warning.filename for warning in (*told, *other)} == {__file__}, "the line that calls the client"
            await mine.unload_sae("here", model=model)
            await mine.unload_sae("there", model=model)

    asyncio.run(work())
