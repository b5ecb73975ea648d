"""SAEs over every API of a real server: loaded, named in hooks, read alike, kept over a worker's death, unloaded."""

from __future__ import annotations

import base64
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from probewire.clients import Client, LogProb, SaeInfo, Sampling, capture, edit_latents, sending
from probewire.protos.errors import FailedPrecondition, InvalidArgument, NotFound
from probewire.protos.model import GenerateRequest, Input, RunRequest
from probewire.protos.spec import Plan
from tests.apis.answers import require_same
from tests.apis.serving import DEADLINE_S, Served, eventually, serving
from tests.apis.ways import GENERATE_ONLY, WAYS, raw_grpc
from tests.saes import write_sae

PROMPT = "When Mary and John went on"
SITE = "resid_post.1"
ALIKE = "alike"
"""Loaded while one of the tests runs."""


def listed(client: Client) -> list[SaeInfo]:
    return [item for item in client.saes() if item.name != ALIKE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sae(tmp_path_factory.mktemp("sae") / "planets", "topk")


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, served: Served) -> Generator[Client]:
    url = f"grpc://{served.grpc}" if request.param == "grpc" else served.http
    with Client(url, timeout_s=DEADLINE_S) as made:
        yield made
        for item in (item for item in made.saes() if item.name != ALIKE):
            made.unload_sae(item.name, model=item.model)


def test_load_list_read_edit_unload(client: Client, model: str, folder: Path) -> None:
    info = client.load_sae(folder, model=model)
    assert (info.name, info.model, info.site, info.k, info.shared) == ("planets", model, SITE, 6, False)
    assert listed(client) == [info]
    hooks = edit_latents(SITE, "planets", {3: 5.0}, positions=1)
    found = client.run(PROMPT, hooks=hooks, capture=[capture(SITE, latents="planets", top_k=8)], model=model)
    rows, plain = (
        found.captures.latents(SITE),
        client.run(PROMPT, capture=[capture(SITE, latents="planets", top_k=8)], model=model).captures.latents(SITE),
    )
    assert (rows.ids == plain.ids).all(axis=1).tolist() == [row != 1 for row in range(len(rows.ids))]
    assert rows.complete
    assert {name: hash_ for hook in found.started.hooks for name, hash_ in hook.saes.items()} == {"planets": info.hash}
    made = client.generate(
        PROMPT, hooks=hooks, capture=capture(SITE, latents="planets", top_k=8), max_new_tokens=4, model=model
    )
    assert made.captures.latents(SITE).ids.shape[0] == len(made.token_ids) - 1
    at = capture(SITE, latents="planets", top_k=8)
    assert client.gradients(PROMPT, LogProb(5), at=at, model=model).gradients.latents(SITE).attributions.any()
    client.unload_sae("planets", model=model)
    assert listed(client) == []
    with pytest.raises(NotFound, match=r"no SAE 'planets' is loaded for you on this model; loaded: (none|alike)"):
        client.run(PROMPT, capture=capture(SITE, latents="planets", top_k=8), model=model)


def test_one_that_is_sent_along(client: Client, model: str, folder: Path) -> None:
    sent = client.load_sae(folder, name="sent", upload=True, dtype="bfloat16", model=model)
    assert (sent.source, sent.dtype) == ("sent along", "bfloat16")
    assert sent.hash == client.load_sae(folder, name="read", upload=False, model=model).hash


@pytest.fixture
def unsent(tmp_path: Path) -> Path:
    """Of weights that the server has nowhere, and so does not call sent."""
    return write_sae(tmp_path / "unsent", seed=1)


def test_one_that_is_too_large_for_a_request(
    client: Client, model: str, unsent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PART_BYTES", 20_000)
    sent = client.load_sae(unsent, name="sent", upload=True, model=model)
    assert sent.hash == client.load_sae(unsent, name="read", upload=False, model=model).hash
    top = [capture(SITE, latents=name, top_k=6, id=name) for name in ("sent", "read")]
    found = client.run(PROMPT, capture=top, model=model).captures
    for part in ("ids", "values"):
        sent_rows, read_rows = (getattr(found.hook(name).latents(SITE), part) for name in ("sent", "read"))
        np.testing.assert_array_equal(sent_rows, read_rows)


def test_one_that_is_sent_several_times_at_once(
    client: Client, model: str, unsent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PART_BYTES", 20_000)
    with ThreadPoolExecutor(3) as pool:
        sent = pool.map(lambda name: client.load_sae(unsent, name=name, upload=True, model=model), "abc")
        assert {info.hash for info in sent} == {client.load_sae(unsent, name="read", upload=False, model=model).hash}


def test_bad_input(client: Client, model: str, folder: Path, tmp_path: Path) -> None:
    wide = write_sae(tmp_path / "wide", d_in=48)
    for upload in (True, False):
        with pytest.raises(InvalidArgument, match=r"reads rows 48 wide, resid_post\.1 of .* is 64 wide"):
            client.load_sae(wide, upload=upload, model=model)
    assert listed(client) == []
    client.load_sae(folder, model=model)
    with pytest.raises(FailedPrecondition, match="you have an SAE 'planets'"):
        client.load_sae(folder, model=model)
    for hook, message in (
        (capture("resid_post.0", latents="planets", top_k=4), "was loaded onto resid_post.1"),
        (capture("resid_post.*", latents="planets", top_k=4), "cannot be used at resid_post.0"),
        (capture(SITE, latents="planets", top_k=97), "which has 96 latents"),
        (edit_latents(SITE, "planets", {96: 1.0}), r"latents \[96\] are outside 0 … 95"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            client.run(PROMPT, hooks=hook, model=model)
        with pytest.raises(InvalidArgument, match=message):
            client.session([hook], model=model)
    with client.session([edit_latents(SITE, "planets", {9: 1.0})], model=model) as live:
        with pytest.raises(NotFound, match=r"hook 0 \(resid_post.1\): no SAE 'comets' is loaded for you"):
            live.update([edit_latents(SITE, "comets", {9: 1.0})])
        assert live.revision == 1


def test_a_site_that_it_was_not_trained_at(client: Client, model: str, folder: Path) -> None:
    with pytest.warns(UserWarning, match="'planets' was trained at resid_post.1, and is loaded onto resid_post.0"):
        info = client.load_sae(folder, site="resid_post.0", model=model)
    assert (info.site, info.own_site) == ("resid_post.0", SITE)
    assert client.load_sae(folder, name="own", model=model).own_site == SITE


LATENTS = Plan(
    (
        edit_latents(SITE, ALIKE, {3: {"add": 2.0}, 9: {"set": -1.0, "active": True}}, phase="generated"),
        capture(SITE, latents=ALIKE, top_k=9, id="top"),
        capture(SITE, latents=ALIKE, latent_ids=[3, 4], id="some"),
    )
)


@pytest.fixture(scope="module")
def alike(served: Served, folder: Path) -> Generator[None]:
    with Client(f"grpc://{served.grpc}", timeout_s=DEADLINE_S) as made:
        for model in ("torch", "mlx"):
            made.load_sae(folder, name=ALIKE, model=model)
        yield
        for model in ("torch", "mlx"):
            made.unload_sae(ALIKE, model=model)


REQUESTS: dict[str, Callable[[str], Any]] = {
    "run": lambda model: RunRequest((Input(PROMPT),), model, LATENTS),
    "generate": lambda model: GenerateRequest(
        (Input(PROMPT),), model, LATENTS, Sampling(max_new_tokens=5, temperature=0.7, seed=1, logprobs=3)
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.usefixtures("alike")
def test_every_face_gives_the_same_latents(way: str, name: str, served: Served, model: str) -> None:
    if name == "run" and way in GENERATE_ONLY:
        return
    request = REQUESTS[name](model)
    require_same(WAYS[way](served, request), raw_grpc(served, request), openai=way in GENERATE_ONLY)


def test_plain_http(served: Served, model: str, folder: Path, unsent: Path) -> None:
    """As somebody without our client would: JSON in, JSON out."""
    files = {
        "config": (folder / "cfg.json").read_text(),
        "weights": base64.b64encode((folder / "sae_weights.safetensors").read_bytes()).decode(),
    }
    with httpx.Client(base_url=served.http, timeout=DEADLINE_S) as web:
        raw = (unsent / "sae_weights.safetensors").read_bytes()
        for begin in (0, 30_000):
            part = {"upload": sha256(raw).hexdigest(), "n_bytes": len(raw), "offset": begin}
            part["data"] = base64.b64encode(raw[begin : begin + 30_000]).decode()
            sent = web.post("/v1/saes/parts", json=part)
            assert sent.json() == {"n_bytes": min(begin + 30_000, len(raw))}, sent.text
        in_parts = {"config": (unsent / "cfg.json").read_text(), "upload": part["upload"]}
        assert web.post("/v1/saes", json={"name": "parts", "model": model, "files": in_parts}).status_code == 200
        assert web.delete("/v1/saes/parts", params={"model": model}).status_code == 200
        made = web.post("/v1/saes", json={"name": "plain", "model": model, "files": files})
        assert made.status_code == 200, made.text
        assert made.json()["d_sae"] == 96
        reduce = {"latents": {"sae": "plain", "top_k": 4}}
        body = {"text": PROMPT, "model": model, "hooks": [{"site": SITE, "capture": {"reduce": reduce}}]}
        assert web.post("/v1/run", json=body, params={"tensors": "list"}).status_code == 200
        assert "plain" in [item["name"] for item in web.get("/v1/saes", params={"model": model}).json()["saes"]]
        broken = {**files, "weights": "%%%"}
        refused = web.post("/v1/saes", json={"name": "b", "model": model, "files": broken})
        assert (refused.status_code, "not base64" in refused.text) == (422, True)
        assert web.delete("/v1/saes/plain", params={"model": model}).status_code == 200
        assert web.delete("/v1/saes/plain", params={"model": model}).status_code == 404


@pytest.mark.slow
def test_it_outlives_its_worker(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    """On a server of its own, so that no other test notices."""
    with serving(checkpoint, tmp_path, backends=["torch"]) as mortal, Client(f"grpc://{mortal.grpc}") as client:
        client.load_sae(folder)
        hook = capture(SITE, latents="planets", top_k=8)
        before = client.run(PROMPT, capture=hook).captures.latents(SITE)
        mortal.worker("torch").kill()
        eventually(lambda: state(client) != "ready", "its death is noticed")
        eventually(lambda: state(client) == "ready", "the worker is back")
        after = client.run(PROMPT, capture=hook).captures.latents(SITE)
    np.testing.assert_array_equal(after.ids, before.ids)
    np.testing.assert_array_equal(after.values, before.values)


def state(client: Client) -> str:
    return client.activity().models[0].state
