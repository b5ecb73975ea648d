"""(c) One 512 × 4096 bfloat16 tensor, from an array in one process to an array in another."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from statistics import median

import prompts
from child import Child
from ratios import Figure, Samples, compare, interleaved
from servers import probewire
from sizes import Sizes
from wire_servers import N_BYTES, SHAPE

from probewire.clients import Client, capture

__all__ = ["wire"]

OURS, JSON, WHOLE = "probewire", "JSON lists", "probewire, a stored capture through worker and gateway"
D_MLP, STORED_TOKENS = 1536, N_BYTES // 2 // 1536
"""Rows of mlp_act on the default model that make the same number of bytes, but for half a row."""
BARE = ("sync", "aio")
ENDS = {"an array": "", "dropped": "-drop"}
"""What a bare stream's reader does with the bytes."""


def wire(sizes: Sizes) -> list[Figure]:
    """Every server and every reader is a process of its own; all stay up and are used in turns."""
    with ExitStack() as stack:
        ports = {
            kind: str(stack.enter_context(Child("wire_servers.py", kind)).hello["port"])
            for kind in ("ours", *BARE, "json")
        }
        asked = {OURS: ("ours", ports["ours"])}
        for end, suffix in ENDS.items():
            for server in BARE:
                asked |= {_bare(server, client, end): (client + suffix, ports[server]) for client in BARE}
        served = stack.enter_context(probewire("torch"))
        _store(served.grpc)
        asked |= {WHOLE: ("stored", served.grpc), JSON: ("json", ports["json"])}
        readers = {name: stack.enter_context(Child("wire_readers.py", *one)) for name, one in asked.items()}
        timed = {
            name: partial(_seconds_each, reader, 1 if name == JSON else sizes.wire_repeats)
            for name, reader in readers.items()
        }
        return _figures(interleaved(timed, rounds=sizes.rounds))


def _seconds_each(reader: Child, repeats: int) -> float:
    return reader.ask(repeats=repeats)["seconds"] / repeats


def _store(address: str) -> None:
    with Client(address) as client:
        prompt = prompts.exact(client, STORED_TOKENS)[0]
        client.run(prompt, capture=[capture("mlp_act.0", store=True)])
        (kept,) = client.captures()
        assert kept.shape == (STORED_TOKENS, D_MLP)


def _bare(server: str, client: str, end: str) -> str:
    return f"bare stream ({server} server, {client} client), {end}"


def _figures(samples: Samples) -> list[Figure]:
    in_ms = {name: [1e3 * seconds for seconds in found] for name, found in samples.items()}
    ends = list(ENDS)
    fastest = [min((name for name in samples if name.endswith(end)), key=lambda n: median(samples[n])) for end in ends]
    what = f"{SHAPE[0]} × {SHAPE[1]} bfloat16"
    row = partial(compare, unit="ms", times=True)
    return [
        row(f"{what}: {OURS} / {fastest[0]}", in_ms, (OURS, fastest[0]), target=0.7, note=_all_bare(in_ms, ends[0])),
        row(f"{what}: {OURS} / {fastest[1]}", in_ms, (OURS, fastest[1]), note=_all_bare(in_ms, ends[1])),
        row(f"{what}: {OURS} / {JSON}", in_ms, (OURS, JSON), target=20.0),
        row(f"{WHOLE} / {fastest[0]}", in_ms, (WHOLE, fastest[0]), note=f"[{STORED_TOKENS}, {D_MLP}], as many bytes"),
    ]


def _all_bare(in_ms: Samples, end: str) -> str:
    did = "joined into an array as ours are" if not ENDS[end] else "dropped as they come, so that no array is made"
    found = ", ".join(
        f"{name.partition(')')[0]}) {median(ms):.1f} ms" for name, ms in in_ms.items() if name.endswith(end)
    )
    return f"the fastest of {found}; {N_BYTES >> 20} ready-made messages of 1 MiB, {did}"
