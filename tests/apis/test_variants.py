"""Variants over every API of a real server: loaded, named, told, read back, kept over a worker's death, refused in words."""

from __future__ import annotations

import base64
import json
from collections.abc import Generator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from probewire.clients import (
    Client,
    Delta,
    FailedPrecondition,
    Hook,
    InvalidArgument,
    NotFound,
    Plan,
    Variant,
    sending,
    use,
)
from probewire.protos.edits import Add
from probewire.protos.model import GenerateRequest, Input, RunRequest, Sampling
from probewire.protos.spec import Capture
from probewire.protos.variants.manifest import Base, Manifest
from probewire.protos.variants.use import VariantUse
from tests.apis.answers import require_same
from tests.apis.serving import DEADLINE_S, Served, eventually, serving
from tests.apis.ways import GENERATE_ONLY, WAYS, raw_grpc

PROMPT = "When Mary and John went on"


def made(seed: int = 0, *, hooks: bool = False, size: float = 0.3) -> Variant:
    """Rank 2 at two weights of the tiny llama."""
    rng = np.random.default_rng(seed)
    deltas = {
        "w_down.1": Delta(rng.normal(size=(96, 2)) * size, rng.normal(size=(2, 64)) * size, rng.normal(size=64) * size),
        "w_q.0": Delta(rng.normal(size=(64, 2)) * size, rng.normal(size=(2, 64)) * size),
    }
    plan = Plan((Hook("resid_post.1", Add(rng.normal(size=64).astype(np.float32))),)) if hooks else Plan()
    return Variant(deltas, plan)


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, served: Served) -> Generator[Client]:
    url = f"grpc://{served.grpc}" if request.param == "grpc" else served.http
    with Client(url, timeout_s=DEADLINE_S) as client:
        yield client
        for item in client.variants():
            client.unload_variant(f"sha256:{item.hash}", item.model)


def logits(client: Client, model: str, **options: Any) -> Any:
    return client.run(PROMPT, capture="logits", model=model, **options).captures["logits"]


def test_load_name_tell_fetch_unload(client: Client, model: str, tmp_path: Path) -> None:
    variant = made(hooks=True)
    info = client.load_variant(variant, name="formal", model=model)
    assert (info.name, info.model, info.max_rank, info.n_hooks) == ("formal", model, 2, 1)
    base = logits(client, model)
    found = client.run(PROMPT, capture="logits", model=model, variant="formal")
    [told] = found.started.variants
    assert (told.name, told.version, told.hash, told.scale) == ("formal", info.version, info.hash, 1.0)
    changed = found.captures["logits"]
    assert np.abs(changed - base).max() > 0.1
    for name in (f"formal@{info.version}", f"sha256:{info.hash[:16]}", use("formal", 1.0)):
        np.testing.assert_array_equal(logits(client, model, variant=name), changed)
    np.testing.assert_array_equal(logits(client, model), base)
    back = client.fetch_variant("formal", tmp_path / "v", model=model, progress=False)
    assert back.hash == info.hash == Variant.load(tmp_path / "v").hash
    again = client.load_variant(tmp_path / "v", name="again", model=model)
    assert again.hash == info.hash
    client.unload_variant("formal", model)
    with pytest.raises(NotFound, match=r"no variant 'formal' is loaded for you on .*; loaded: again"):
        logits(client, model, variant="formal")


def test_a_name_that_moves_to_other_content_shows_another_hash(client: Client, model: str) -> None:
    first = client.load_variant(made(1), name="x", model=model)
    second = client.load_variant(made(2), name="x", model=model)
    told = [client.run(PROMPT, model=model, variant=name).started.variants[0] for name in ("x", f"x@{first.version}")]
    assert [(one.version, one.hash) for one in told] == [
        (first.version + 1, second.hash),
        (first.version, first.hash),
    ]


def test_large_files_in_parts(client: Client, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PART_BYTES", 1500)
    info = client.load_variant(made(3), name="big", model=model, progress=False)
    assert (
        client.fetch_variant("big", model=model, progress=False).hash
        == info.hash
        == made(3).bound(client.describe(model)).hash
    )


REQUESTS: dict[str, Any] = {
    "run": lambda model: RunRequest((Input(PROMPT),), model, CAPTURED, variants=(VariantUse("alike", 0.7),)),
    "generate": lambda model: GenerateRequest(
        (Input(PROMPT),), model, CAPTURED, Sampling(max_new_tokens=5, temperature=0.7, seed=1, logprobs=3),
        variants=(VariantUse("alike", 0.7),),
    ),
}  # fmt: skip
CAPTURED = Plan((Hook("resid_post.2", capture=Capture()),))


@pytest.fixture
def alike(served: Served, model: str) -> Generator[None]:
    with Client(f"grpc://{served.grpc}", timeout_s=DEADLINE_S) as client:
        client.load_variant(made(4), name="alike", model=model)
        yield
        client.unload_variant("alike", model)


@pytest.mark.parametrize("way", [way for way in WAYS if way not in GENERATE_ONLY])
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.usefixtures("alike")
def test_every_face_gives_the_same(way: str, name: str, served: Served, model: str) -> None:
    """Those of OpenAI's and NeuroScope's dialects name variants in the model: see below."""
    request = REQUESTS[name](model)
    require_same(WAYS[way](served, request), raw_grpc(served, request), openai=False)


def test_openai_names_variants_in_the_model(served: Served, model: str) -> None:
    with Client(f"grpc://{served.grpc}", timeout_s=DEADLINE_S) as ours, openai.OpenAI(
        base_url=f"{served.http}/v1", api_key="none", max_retries=0
    ) as theirs:  # fmt: skip
        formal, _ = (
            ours.load_variant(made(seed), name=name, model=model) for name, seed in (("formal", 5), ("lyon", 6))
        )
        try:

            def text(named: str, **extra: Any) -> str:
                answer = theirs.completions.create(model=named, prompt=PROMPT, max_tokens=8, temperature=0, **extra)
                return answer.choices[0].text

            def expected(variant: Any) -> str:
                return ours.generate(PROMPT, max_new_tokens=8, temperature=0, model=model, variant=variant).text

            assert text(model) == expected(())
            assert (
                text(f"{model}:formal") == text(f"{model}:formal@{formal.version}") == expected("formal") != text(model)
            )
            assert text(f"{model}:formal+lyon") == expected(["formal", "lyon"])
            scaled = {"probewire": {"variants": [{"name": "lyon", "scale": 0.5}]}}
            assert text(f"{model}:formal", extra_body=scaled) == expected(["formal", use("lyon", 0.5)])
            assert text(model, extra_body={"probewire": {"variants": "lyon"}}) == expected("lyon")
            chat = theirs.chat.completions.create(
                model=f"{model}:lyon", messages=[{"role": "user", "content": "Hello"}], max_tokens=6, temperature=0
            )
            said = ours.generate(
                [{"role": "user", "content": "Hello"}], max_new_tokens=6, temperature=0, model=model, variant="lyon"
            )
            assert chat.choices[0].message.content == said.text
            listed = {one.id: one for one in theirs.models.list()}
            assert {f"{model}:formal", f"{model}:lyon", model} <= set(listed)
            parents: Any = listed[f"{model}:formal"]
            assert (parents.parent, parents.root) == (model, model)
            with pytest.raises(
                openai.NotFoundError, match=r"no variant 'nobody' is loaded for you on .*; loaded: formal, lyon"
            ):
                text(f"{model}:nobody")
            with pytest.raises(openai.NotFoundError, match="no model 'gpt-0:formal' is loaded"):
                text("gpt-0:formal")
        finally:
            for name in ("formal", "lyon"):
                ours.unload_variant(name, model)


def test_plain_http(served: Served, model: str) -> None:
    """As somebody without our client would: JSON in, JSON out."""
    files = made(7).files()
    with httpx.Client(base_url=served.http, timeout=DEADLINE_S) as web:
        raw = files["deltas.safetensors"]
        for begin in (0, 2000):
            data = base64.b64encode(raw[begin : begin + 2000] if begin == 0 else raw[begin:]).decode()
            part = {"upload": sha256(raw).hexdigest(), "n_bytes": len(raw), "offset": begin, "data": data}
            assert web.post("/v1/variants/parts", json=part).json() == {"n_bytes": 2000 if begin == 0 else len(raw)}
        body = {
            "name": "plain",
            "model": model,
            "files": [
                {"name": "variant.json", "data": base64.b64encode(files["variant.json"]).decode()},
                {"name": "deltas.safetensors", "upload": sha256(raw).hexdigest()},
            ],
        }
        answer = web.post("/v1/variants", json=body)
        assert answer.status_code == 200, answer.text
        assert web.get("/v1/variants/plain", params={"model": model}).json() == answer.json()
        assert answer.json() in web.get("/v1/variants", params={"model": model}).json()["variants"]
        ran = web.post(
            "/v1/run",
            json={"text": PROMPT, "model": model, "variants": ["plain"]},
            headers={"accept": "application/json"},
        )
        assert ran.status_code == 200, ran.text
        assert json.loads(ran.text)["started"]["variants"][0]["hash"] == answer.json()["hash"]
        read = web.post("/v1/variants/files/plain", json={"file": "variant.json", "model": model}).json()
        assert json.loads(base64.b64decode(read["data"]))["hash"] == answer.json()["hash"]
        assert web.delete("/v1/variants/plain", params={"model": model}).status_code == 200
        assert web.delete("/v1/variants/plain", params={"model": model}).status_code == 404


@pytest.mark.parametrize(
    ("variant", "why"),
    [
        (lambda: Variant({"w_q.9": made().deltas["w_q.0"]}), r"no delta at w_q\.9; the nearest are w_q"),
        (lambda: Variant({"w_down.1": made().deltas["w_q.0"]}), r"the delta at w_down\.1 is of 64 inputs"),
        (lambda: Variant({"module:model.layers.0.nothing": made().deltas["w_q.0"]}), "no linear module there"),
        (lambda: Variant({"w_q.0": Delta(np.ones((64, 513)), np.ones((513, 64)))}), "at most 512 are served"),
    ],
)
def test_what_does_not_fit_is_refused(client: Client, model: str, variant: Any, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        client.load_variant(variant(), name="bad", model=model)
    assert client.variants(model=model) == []
    assert logits(client, model).shape[-1] == 261


def test_another_base_is_refused(client: Client, model: str) -> None:
    other = Variant(made().deltas, manifest=Manifest(name="x", base=Base(id="other", model_hash="cd" * 32)))
    with pytest.raises(FailedPrecondition, match=r"cdcdcdcdcdcdcdcd… \(other\)"):
        client.load_variant(other, model=model)
    assert client.load_variant(other, model=model, rebase=True).hash == made().bound(client.describe(model)).hash


@pytest.mark.slow
def test_it_outlives_its_worker_and_a_damaged_one_is_not_served(checkpoint: Path, tmp_path: Path) -> None:
    with serving(checkpoint, tmp_path, backends=["torch"]) as mortal, Client(f"grpc://{mortal.grpc}") as client:
        client.load_variant(made(8), name="kept")
        before = logits(client, "", variant="kept")
        mortal.worker("torch").kill()
        eventually(lambda: client.activity().models[0].state != "ready", "its death is noticed")
        eventually(lambda: client.activity().models[0].state == "ready", "the worker is back")
        np.testing.assert_array_equal(logits(client, "", variant="kept"), before)
