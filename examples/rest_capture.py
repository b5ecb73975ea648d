"""Activations over plain HTTP, with Python's own library alone: captured while generating, whole and as they come.

A whole answer is JSON with tensors in base64 (or one safetensors file, where `accept` asks for it); a stream is
server-sent events, or a line of JSON each where `accept` is application/x-ndjson. Other languages need no more than this.

    python examples/rest_capture.py [--url http://host:8000]
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import numpy as np
from serving import addresses, arguments

SITES: list[dict[str, Any]] = [{"site": "resid_post.5", "capture": {}}, {"site": "attn_probs.5", "capture": {}}]
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Explain transformers"}],
    "sampling": {"max_new_tokens": 12},
}


def main() -> None:
    """Of the server at --url, which must be its http one, or of one that is started here."""
    args = arguments(__doc__)
    if args.url is not None:
        show(args.url.rstrip("/"), args.model)
        return
    with addresses() as found:
        show(found["http"], args.model)


def show(url: str, model: str) -> None:
    """One answer whole, one streamed."""
    body: dict[str, Any] = {**ASKED, "hooks": SITES, "model": model}
    with post(url, body) as answer:
        whole = json.load(answer)
    print(f"said {whole['text']['input']!r}")
    for tensor in whole["tensors"]:
        print(
            f"  {tensor['site']}: {tensor['dtype']} {tensor['shape']}, largest |value| {np.abs(array(tensor)).max():.2f}"
        )

    print("as it comes:")
    last: Any = None
    for event in events(url, {**body, "hooks": SITES[:1], "stream": True}):
        if "tensor_frame" in event:
            [rows] = array(event["tensor_frame"]["tensor"])  # [site, row, width], one site here
            step = "prompt" if event["tensor_frame"]["step"] == 0 and len(rows) > 1 else "token"
            turned = "" if last is None else f", cosine with the row before {cosine(rows[-1], last):.2f}"
            print(f"  {step:<7}{len(rows):>3} rows, norm of the last {np.linalg.norm(rows[-1]):.1f}{turned}", end="")
            last = rows[-1]
        elif "token" in event:
            print(f"  → {event['token']['text']!r}")
    print()


def post(url: str, body: dict[str, Any], accept: str = "application/json") -> HTTPResponse:
    """POST /v1/generate."""
    connection = HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", "/v1/generate", json.dumps(body), {"content-type": "application/json", "accept": accept})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {answer.read().decode()}")
    return answer


def events(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line of JSON each."""
    with post(url, body, "application/x-ndjson") as lines:
        for line in lines:
            yield json.loads(line)


def array(tensor: dict[str, Any]) -> Any:
    """Of base64 and a shape."""
    return np.frombuffer(base64.b64decode(tensor["data"]), tensor["dtype"]).reshape(tensor["shape"])


def cosine(a: Any, b: Any) -> float:
    """Of two rows."""
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
