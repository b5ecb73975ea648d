"""Every way to ask probewire the same thing: each takes a request and gives an Answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import httpx
import openai
import safetensors

from probewire.clients import Client
from probewire.protos import probewire_pb2 as pb
from probewire.protos.gradients import GradientsRequest
from probewire.protos.metrics import Measured
from probewire.protos.model import Event, Finished, GenerateRequest, RunRequest, Started, TensorFrame, Token
from probewire.protos.service import InferenceRequest
from probewire.protos.sweeps import SweepRequest
from probewire.protos.tensors import Tensor
from probewire.protos.wire.codec import from_json, to_json, to_proto
from probewire.protos.wire.delimited import iter_delimited
from probewire.protos.wire.events import FrameAssembler, decode_events
from tests.apis.answers import Answer, Rows, frame_of, from_events, from_parts, key_of, rows_of
from tests.apis.serving import DEADLINE_S, Served

__all__ = ["GENERATE_ONLY", "WAYS", "Request", "Way", "raw_grpc"]

Request = InferenceRequest
OPERATIONS: dict[type, str] = {
    GenerateRequest: "generate",
    RunRequest: "run",
    GradientsRequest: "gradients",
    SweepRequest: "sweep",
}
Way = Callable[[Served, Request], Answer]


def raw_grpc(served: Served, request: Request) -> Answer:
    """No code of ours but the stubs and the decoder."""
    method = OPERATIONS[type(request)].capitalize()
    assembler = FrameAssembler()
    call = served.channel.unary_stream(f"/probewire.v1.Inference/{method}", None, pb.Events.FromString)
    messages = call(to_proto(request).SerializeToString(), timeout=DEADLINE_S)
    return from_events(event for message in messages for event in decode_events(message, assembler))


def grpc_client(served: Served, request: Request) -> Answer:
    """`Client("grpc://…")`."""
    with Client(f"grpc://{served.grpc}", timeout_s=DEADLINE_S) as client:
        return client_answer(client, request)


def http_client(served: Served, request: Request) -> Answer:
    """`Client("http://…")`, which reads length-delimited protobuf."""
    with Client(served.http, timeout_s=DEADLINE_S) as client:
        return client_answer(client, request)


def client_answer(client: Client, request: Request) -> Answer:
    """What a client's transport hands on."""
    return from_events(client._transport.listen(OPERATIONS[type(request)], request))


def rest_json(served: Served, request: Request) -> Answer:
    """One JSON object, tensors in base64."""
    return _whole(_posted(served, request).json())


def rest_lists(served: Served, request: Request) -> Answer:
    """One JSON object, tensors as nested lists."""
    return _whole(_posted(served, request, tensors="list").json())


def rest_safetensors(served: Served, request: Request) -> Answer:
    """One safetensors file, everything else in its metadata."""
    body = _posted(served, request, format="safetensors").content
    head = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    told = {name: json.loads(text) for name, text in head["__metadata__"].items()}
    dtypes = {"F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32"}
    files: Any = safetensors  # not annotated
    arrays: dict[Any, Rows] = {}
    for name, found in files.deserialize(body):
        about = told["tensors"][name]
        tensor = Tensor(dtypes[found["dtype"]], tuple(found["shape"]), bytes(found["data"]))
        arrays[key_of(about)] = Rows(about["id"], tuple(about["positions"]), tensor.numpy())
    return from_parts(told["started"], told["text"], told["tokens"], arrays, told["finished"], told["measured"])


def rest_event_stream(served: Served, request: Request) -> Answer:
    """Server-sent events."""
    blocks = _posted(served, request, format="sse").text.split("\n\n")
    fields = (dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks if block)
    return from_events(_event(item["event"], json.loads(item["data"])) for item in fields)


def rest_lines(served: Served, request: Request) -> Answer:
    """A JSON object a line."""
    lines = (json.loads(line) for line in _posted(served, request, format="ndjson").text.splitlines())
    return from_events(_event(*next(iter(line.items()))) for line in lines)


def rest_binary_stream(served: Served, request: Request) -> Answer:
    """Length-delimited protobuf, in whatever pieces it comes."""
    body = _posted(served, request, format="protobuf").content
    return from_events(iter_delimited(body[at : at + 1000] for at in range(0, len(body), 1000)))


def _posted(served: Served, request: Request, **options: str) -> httpx.Response:
    response = served.web.post(f"/v1/{OPERATIONS[type(request)]}", json={**to_json(request), **options})
    assert response.status_code == 200, response.text
    return response


def _whole(body: dict[str, Any]) -> Answer:
    arrays = rows_of(body["tensors"])
    return from_parts(body["started"], body["text"], body["tokens"], arrays, body["finished"], body["measured"])


_KINDS: dict[str, type[Any]] = {
    "started": Started,
    "token": Token,
    "tensor_frame": TensorFrame,
    "measured": Measured,
    "finished": Finished,
}


def _event(kind: str, data: Any) -> Event:
    return from_json(_KINDS[kind], data)


# ---- OpenAI ----------------------------------------------------------------------------------------------------------


def openai_whole(served: Served, request: Request) -> Answer:
    """The `openai` package; the field `probewire` carries the hooks there and the tensors back."""
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0) as client:
        create, arguments, names = _openai_call(client, request)
        answer = create(**arguments)
    extra = answer.model_extra["probewire"]
    choices = {names[choice.index]: choice for choice in answer.choices}
    tokens = [token for name, choice in choices.items() for token in _openai_tokens(name, choice)]
    texts = {name: choice.message.content if _is_chat(request) else choice.text for name, choice in choices.items()}
    return from_parts(extra["started"], texts, tokens, rows_of(extra["tensors"]), extra["finished"])


def openai_stream(served: Served, request: Request) -> Answer:
    """The same, streamed: each step's rows ride on its chunk."""
    texts: dict[str, str] = {}
    tokens: list[dict[str, Any]] = []
    frames: list[TensorFrame] = []
    started: dict[str, Any] = {}
    finished: list[dict[str, Any]] = []
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0) as client:
        create, arguments, names = _openai_call(client, request)
        with create(**arguments, stream=True) as chunks:
            for chunk in chunks:
                extra = (chunk.model_extra or {}).get("probewire", {})
                started = extra.get("started", started)
                finished += extra.get("finished", [])
                frames += map(frame_of, extra.get("tensors", []))
                for choice in chunk.choices:
                    name = names[choice.index]
                    text = choice.delta.content if _is_chat(request) else choice.text
                    texts[name] = texts.get(name, "") + (text or "")
                    tokens += _openai_tokens(name, choice)
    arrays = from_events([from_json(Started, started), *frames]).arrays
    return from_parts(started, texts, tokens, arrays, finished)


def _is_chat(request: Request) -> bool:
    return request.inputs[0].messages is not None


def _openai_call(client: openai.OpenAI, request: Request) -> tuple[Callable[..., Any], dict[str, Any], dict[int, str]]:
    """The method, its arguments, and the input that each choice continues."""
    assert isinstance(request, GenerateRequest)
    sampling = request.sampling
    arguments: dict[str, Any] = {
        "model": request.model,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "extra_body": {"probewire": {"hooks": to_json(request.plan)["hooks"]}},
    }
    names = {index: item.name for index, item in enumerate(request.inputs)}
    if _is_chat(request):
        messages = to_json(request.inputs[0])["messages"]
        return (
            client.chat.completions.create,
            {**arguments, "messages": messages, "logprobs": True, "top_logprobs": sampling.logprobs},
            names,
        )
    prompts = [item.text for item in request.inputs]
    prompt = prompts if len(prompts) > 1 else prompts[0]
    return client.completions.create, {**arguments, "prompt": prompt, "logprobs": sampling.logprobs}, names


def _openai_tokens(name: str, choice: Any) -> Iterator[dict[str, Any]]:
    """Text and log-probability of each token; OpenAI's shapes have no ids."""
    if choice.logprobs is None:
        return
    if hasattr(choice.logprobs, "content"):
        pairs: Iterable[tuple[str, float]] = ((item.token, item.logprob) for item in choice.logprobs.content)
    else:
        pairs = zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, strict=True)
    for index, (text, logprob) in enumerate(pairs):
        yield {"input": name, "index": index, "id": 0, "text": text, "logprob": logprob}


GENERATE_ONLY: dict[str, Way] = {"openai": openai_whole, "openai stream": openai_stream}

WAYS: dict[str, Way] = {
    "grpc client": grpc_client,
    "http client": http_client,
    "json": rest_json,
    "json lists": rest_lists,
    "safetensors": rest_safetensors,
    "event stream": rest_event_stream,
    "json lines": rest_lines,
    "binary stream": rest_binary_stream,
    **GENERATE_ONLY,
}
"""All but `raw_grpc`, which the others are held against, and the service in process, which needs no server."""
