"""(k) Reading latents of a large SAE while eight generations run: what it costs, and how many bytes move."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import prompts
from grpc import insecure_channel
from ratios import Figure, compare, interleaved
from servers import probewire
from sizes import Sizes
from streams import Asked, eight_streams

from probewire.clients import Client, Hook, Sampling, capture
from probewire.protos import probewire_pb2 as pb
from probewire.protos.model import GenerateRequest, Input
from probewire.protos.spec import Plan
from probewire.protos.wire.codec import to_proto

__all__ = ["latents_cost"]

save_file: Any = import_module("safetensors.numpy").save_file  # not annotated
SITE, D_SAE, K = "resid_post.15", 16_384, 32
PLAIN, TOP, TOP_FLOAT32, NAMED, DENSE = (
    "not captured",
    f"top {K} of {D_SAE:,}, bfloat16",
    f"top {K} of {D_SAE:,}, float32",
    f"{K} named latents of {D_SAE:,}, float32",
    "the whole residual",
)


def latents_cost(sizes: Sizes) -> list[Figure]:
    """Eight streams that read latents against eight that read nothing."""
    with probewire("torch") as served, Client(served.grpc) as client, tempfile.TemporaryDirectory() as scratch:
        d_in = client.describe().d_model
        topk = _random_sae(Path(scratch) / "topk", "topk", d_in, k=K)
        jump = _random_sae(Path(scratch) / "jumprelu", "jumprelu", d_in)
        client.load_sae(topk, site=SITE, name="top", dtype="bfloat16")
        client.load_sae(topk, site=SITE, name="top32")
        client.load_sae(jump, site=SITE, name="jump")
        reads = {
            TOP: capture(SITE, latents="top", top_k=K),
            TOP_FLOAT32: capture(SITE, latents="top32", top_k=K),
            NAMED: capture(SITE, latents="jump", latent_ids=list(range(0, D_SAE, D_SAE // K))),
            DENSE: capture(SITE),
        }
        eight = prompts.short(client)
        variants: dict[str, Asked] = {PLAIN: {}, **{name: {"hooks": [hook]} for name, hook in reads.items()}}
        timed = {name: partial(eight_streams, client, eight, sizes.n_new, asked) for name, asked in variants.items()}
        samples = interleaved(timed, rounds=sizes.rounds, any_order=True)
        moved = {name: _bytes_a_token(served.grpc, eight[0], sizes.n_new, hook) for name, hook in reads.items()}
        plain = _bytes_a_token(served.grpc, eight[0], sizes.n_new, None)
    figures: list[Figure] = []
    for name in reads:
        steps = [8e3 / median(samples[which]) for which in (name, PLAIN)]
        note = f"{steps[0] - steps[1]:+.1f} ms a step of all eight; {_told(moved[name], plain, moved[DENSE])}"
        figures.append(
            compare(f"eight streams: {name} / {PLAIN}", samples, (name, PLAIN), unit="tok/s", target=0.9, note=note)
        )
    return figures


def _told(moved: float, plain: float, dense: float) -> str:
    return (
        f"{moved - plain:.0f} bytes a token more than a token alone ({plain:.0f}): {(moved - plain) / K:.1f} a latent, "
        f"frames and names included; the whole residual brings {dense - plain:.0f}"
    )


def _bytes_a_token(address: str, prompt: list[int], n_new: int, hook: Hook | None) -> float:
    """Bytes of gRPC messages a generated token, prompt rows left out."""
    request = GenerateRequest(
        (Input(token_ids=tuple(prompt)),),
        plan=Plan((hook,) if hook is not None else ()),
        sampling=Sampling(max_new_tokens=n_new, ignore_eos=True),
    )
    with insecure_channel(address.removeprefix("grpc://")) as channel:
        start: Any = channel.unary_stream  # not annotated
        call = start("/probewire.v1.Inference/Generate", None, None)
        messages = [bytes(message) for message in call(to_proto(request).SerializeToString())]
    sizes = [len(message) for message in messages if _steps(message)]
    return float(np.median(sizes))


def _steps(message: bytes) -> bool:
    """Whether a message brings a token of the steady state: not the first, which comes with the prompt's rows."""
    events = pb.Events.FromString(message).events
    tokens = [event.token.index for event in events if event.WhichOneof("kind") == "token"]
    finished = any(event.WhichOneof("kind") == "finished" for event in events)
    return bool(tokens) and min(tokens) > 0 and not finished


def _random_sae(folder: Path, architecture: str, d_in: int, **config: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {
        "W_enc": rng.standard_normal((d_in, D_SAE), dtype=np.float32) / d_in**0.5,
        "W_dec": rng.standard_normal((D_SAE, d_in), dtype=np.float32) / d_in**0.5,
        "b_dec": np.zeros(d_in, np.float32),
        "b_enc": np.zeros(D_SAE, np.float32),
    }
    if architecture == "jumprelu":
        arrays["threshold"] = np.full(D_SAE, 0.1, np.float32)
    save_file(arrays, folder / "sae_weights.safetensors")
    told: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": D_SAE,
        "dtype": "float32",
        "metadata": {},
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(told))
    return folder
