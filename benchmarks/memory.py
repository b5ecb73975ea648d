"""(d) What a long generation with every layer captured adds to each process while its reader keeps up."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import prompts
import psutil
from child import Child
from ratios import Figure
from servers import probewire
from sizes import Sizes

from probewire.clients import Client
from probewire.protos.model import ModelInfo

__all__ = ["mlx_memory", "torch_memory"]

MIB = 1 << 20
ALLOWED_MIB = 64.0
SAMPLE_S = 0.1
WARM_TOKENS = 32
BF16_BYTES = 2


class Watch:
    """The memory of some processes, sampled until the end of the `with`."""

    def __init__(self, processes: dict[str, psutil.Process]) -> None:
        self._processes = processes
        self.start = self._now()
        self.peak = dict(self.start)
        self._over = threading.Event()

    @contextmanager
    def going(self) -> Generator[None]:
        """Sample in a thread."""
        thread = threading.Thread(target=self._sample)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def grown(self, name: str) -> int:
        """Bytes by which a process was larger than at the start, at most."""
        return self.peak[name] - self.start[name]

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            for name, resident in self._now().items():
                self.peak[name] = max(self.peak[name], resident)

    def _now(self) -> dict[str, int]:
        return {name: process.memory_info().rss for name, process in self._processes.items()}


def torch_memory(sizes: Sizes) -> list[Figure]:
    """The torch worker."""
    return _memory("torch", sizes)


def mlx_memory(sizes: Sizes) -> list[Figure]:
    """The MLX worker."""
    return _memory("mlx", sizes)


def _memory(backend: str, sizes: Sizes) -> list[Figure]:
    n_new = sizes.memory_tokens
    with probewire(backend) as served, Client(served.grpc) as client, Child("stream_reader.py", served.grpc) as reader:
        prompt, info = prompts.short(client)[0], client.describe()
        reader.ask(prompt=prompt, n_new=WARM_TOKENS)
        watch = Watch({"worker": served.worker, "gateway": served.gateway, "client": psutil.Process(reader.pid)})
        print(f"    {backend}: generating {n_new} tokens", flush=True)
        with watch.going():
            answer = reader.ask(prompt=prompt, n_new=n_new)
    if answer["tokens"] != n_new:
        raise RuntimeError(f"asked for {n_new} tokens, got {answer['tokens']}")
    cache = {"worker": _cache_bytes(info, len(prompt) + n_new)} if backend == "mlx" else {}
    moved = f"{answer['bytes'] / MIB:.0f} MiB of activations went through"
    return [_figure(f"{backend}, {n_new} tokens", name, watch, cache.get(name, 0), moved) for name in watch.peak]


def _figure(what: str, name: str, watch: Watch, cache: int, moved: str) -> Figure:
    title = f"{what} × every layer captured: growth of the {name}{', KV cache included' if cache else ''}"
    target = None if name == "client" else round(ALLOWED_MIB + cache / MIB, 1)
    behind = f"from {watch.start[name] / MIB:,.0f} MiB; {moved}"
    return Figure(title, (watch.grown(name) / MIB,), target, at_most=True, unit="MiB", behind=behind)


def _cache_bytes(info: ModelInfo, n_tokens: int) -> int:
    """Keys and values of so many positions: mlx-lm takes room for them as it goes, our torch engine at the start."""
    return 2 * info.n_layers * info.n_kv_heads * info.d_head * BF16_BYTES * n_tokens
