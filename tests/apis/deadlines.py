"""Many requests of every kind, each with a deadline of its own; afterwards nothing is held for any of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np

from tests.apis.serving import DEADLINE_S, Served, eventually

__all__ = ["stress"]

AT_ONCE = 24
PROMPT = "When Mary and John went to the store, "


def stress(served: Served, model: str, n: int, longest_s: float, seed: int = 0) -> dict[int, int]:
    """How many answers had which status. Raises where something is still held in the end."""
    rng = np.random.default_rng(seed)
    asked = [(_request(rng, model), float(rng.uniform(0.05, longest_s))) for _ in range(n)]
    with (
        httpx.Client(
            base_url=served.http, timeout=DEADLINE_S, trust_env=False, limits=httpx.Limits(max_connections=AT_ONCE)
        ) as web,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        statuses = list(pool.map(lambda one: _post(web, *one), asked))
        eventually(lambda: _nothing_is_held(web, model), "nothing is held")
        answer = web.post("/v1/run", json={"text": PROMPT, "model": model, "hooks": []})
        assert answer.status_code == 200, answer.text
        for stored in web.get("/v1/captures", params={"model": model}).json()["captures"]:
            web.delete(f"/v1/captures/{stored['id']}").raise_for_status()
        eventually(lambda: not _status(web, model)["store_bytes"], "no room is reserved")
    return {status: statuses.count(status) for status in sorted(set(statuses))}


def _post(web: httpx.Client, request: tuple[str, dict[str, Any]], timeout_s: float) -> int:
    path, body = request
    with web.stream("POST", path, json=body, headers={"x-timeout-s": f"{timeout_s:.3f}"}) as answer:
        try:
            answer.read()
        except httpx.RemoteProtocolError:  # broken off in the middle, as its answer had begun
            return 504
        return answer.status_code


def _request(rng: np.random.Generator, model: str) -> tuple[str, dict[str, Any]]:
    text = PROMPT * int(rng.integers(1, 12))
    store = {"site": "resid_post.1", "capture": {"store": bool(rng.random() < 0.5)}}
    kind = rng.choice(["generate", "stream", "run", "gradients", "sweep"])
    target = {"metric": {"logit": {"token": 5}}}
    body: dict[str, Any] = {"text": text, "model": model}
    if kind in ("generate", "stream"):
        sampling = {"max_new_tokens": int(rng.integers(1, 400)), "ignore_eos": True}
        return "/v1/generate", {**body, "sampling": sampling, "hooks": [store], "stream": bool(kind == "stream")}
    if kind == "run":
        return "/v1/run", {**body, "hooks": [store]}
    if kind == "gradients":
        return "/v1/gradients", {**body, "targets": [target]}
    plans = [{"hooks": [{"site": "mlp_out.1", "edit": {"scale": {"factor": 0.01 * i}}}]} for i in range(200)]
    return "/v1/sweep", {**body, "targets": [target], "plans": plans}


def _status(web: httpx.Client, model: str) -> dict[str, Any]:
    found = {each["id"]: each for each in web.get("/v1/activity").json()["models"]}
    return {"store_bytes": 0, "running": 0, "held": 0, "waiting": 0, **found[model].get("status", {})}


def _nothing_is_held(web: httpx.Client, model: str) -> bool:
    status = _status(web, model)
    mine = [
        one for one in web.get("/v1/activity").json().get("requests", ()) if one["operation"].startswith("Inference")
    ]
    return not (status["running"] or status["held"] or status["waiting"] or mine)
