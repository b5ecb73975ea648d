"""(q) What a polite user sees beside another's heavy requests; and what a busy process on the same cores costs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from statistics import median

import prompts
from ratios import Figure
from servers import probewire
from sizes import Sizes

from probewire.clients import Client, Input, Logit, ProbewireError, ablate

__all__ = ["beside_a_busy_process", "polite"]

N_PLANS = 16_384
N_TOKENS = 24
"""Of the polite user's generations."""
LAYERS = 30

Heavy = Callable[[Client, threading.Event], None]


def _sweep(client: Client, stop: threading.Event) -> None:
    ids = prompts.short(client)[0]
    plans = [[ablate(f"resid_pre.{i % LAYERS}", positions=i % len(ids))] for i in range(N_PLANS)]
    _until(stop, lambda: client.sweep(Input(token_ids=tuple(ids)), Logit(5), plans, progress=False))


def _gradients(client: Client, stop: threading.Event) -> None:
    inputs = {f"x{i}": Input(token_ids=tuple((7 * i + j) % 40_000 + 100 for j in range(100))) for i in range(16)}
    _until(stop, lambda: client.gradients(inputs, Logit(5), at="mlp_act.*", capture="mlp_act.*"))


def _long_run(client: Client, stop: threading.Event) -> None:
    ids = tuple((17 * j) % 40_000 + 100 for j in range(4_000))
    _until(stop, lambda: client.run(Input(token_ids=ids), capture="resid_post.15"))


def _until(stop: threading.Event, ask: Callable[[], object]) -> None:
    while not stop.is_set():
        with suppress(ProbewireError):  # it is cut off when its client closes
            ask()


HEAVY: dict[str, tuple[Heavy, ...]] = {
    f"a sweep of {N_PLANS:,} plans": (_sweep,),
    "gradients of 16 × 100 tokens by every neuron": (_gradients,),
    "a run of 4,000 tokens": (_long_run,),
    "all three": (_sweep, _gradients, _long_run),
}


def polite(sizes: Sizes) -> list[Figure]:
    """Time to first token and tokens a second beside each heavy request, and how soon a deserted one ends."""
    figures: list[Figure] = []
    users = ["polite", "ada", "bob", "eve"]
    with probewire("torch", users=users, options=["--context", "8192", "--cache-tokens", "16384"]) as served:
        me = Client(served.grpc, api_key=served.keys[0])
        prompt = prompts.short(me)[0]
        alone = [_generation(me, prompt) for _ in range(2 + sizes.rounds)][2:]
        for name, heavy in HEAVY.items():
            with _beside(served.grpc, served.keys[1:], heavy) as left:
                beside = [_generation(me, prompt) for _ in range(2 * sizes.rounds)]
            figures += _figures(name, alone, beside, left)
    return figures


def _figures(
    name: str, alone: list[tuple[float, float]], beside: list[tuple[float, float]], left: list[float]
) -> list[Figure]:
    first, rate = zip(*beside, strict=True)
    base = median(rate for _, rate in alone)
    waits = ", ".join(f"{1e3 * wait:.0f}" for wait in first)
    return [
        Figure(f"first token beside {name}", first, 0.5, at_most=True, unit="s", behind=f"{waits} ms"),
        Figure(
            f"tokens a second beside {name} / alone",
            tuple(r / base for r in rate),
            0.5,
            behind=f"{base:.1f} tok/s alone",
        ),
        Figure(f"until the model is idle once its caller has gone: {name}", tuple(left), 1.0, at_most=True, unit="s"),
    ]


def _generation(client: Client, prompt: list[int]) -> tuple[float, float]:
    """(Seconds to the first token, tokens a second after it)."""
    start = time.perf_counter()
    with client.stream(prompt, max_new_tokens=N_TOKENS, ignore_eos=True) as stream:
        next(stream)
        first = time.perf_counter()
        for _ in stream:
            pass
    return first - start, (N_TOKENS - 1) / (time.perf_counter() - first)


@contextmanager
def _beside(url: str, keys: tuple[str, ...], heavy: tuple[Heavy, ...]) -> Generator[list[float]]:
    """Others ask for something heavy, a user each; in the end they vanish, and the list says after how long it is idle."""
    stop, left = threading.Event(), list[float]()
    clients = [Client(url, api_key=key) for key, _ in zip(keys, heavy, strict=False)]
    threads = [
        threading.Thread(target=ask, args=(client, stop), daemon=True)
        for client, ask in zip(clients, heavy, strict=True)
    ]
    for thread in threads:
        thread.start()
    time.sleep(5)  # all of them are under way
    try:
        yield left
    finally:
        stop.set()
        gone = time.perf_counter()
        for client in clients:
            client.close()
        with Client(url, api_key=keys[-1]) as watcher:
            while _works(watcher):
                time.sleep(0.02)
        left.append(time.perf_counter() - gone)
        for thread in threads:
            thread.join()


def _works(client: Client) -> bool:
    [model] = client.activity().models
    return bool(model.status.running or model.status.waiting)


def beside_a_busy_process(sizes: Sizes) -> list[Figure]:
    """Runs and generations while another process keeps one of the cores busy, against those of an idle machine."""
    with probewire("torch", dtype="float32") as served, Client(served.grpc) as client:
        four = prompts.short(client)[:4]

        def work() -> tuple[float, float]:
            start = time.perf_counter()
            for _ in range(5):
                client.run(list(four), capture="resid_post.15")
            return 5 / (time.perf_counter() - start), _generation(client, four[0])[1]

        work()
        idle = [work() for _ in range(sizes.rounds)]
        with _busy():
            time.sleep(3)  # what is chosen by what the machine gives is chosen now
            busy = [work() for _ in range(sizes.rounds)]
        time.sleep(3)
        after = [work() for _ in range(sizes.rounds)]
    figures: list[Figure] = []
    for i, what in enumerate(("runs of four prompts", "one generation")):
        base = median(rates[i] for rates in idle)
        for name, found, target in (("beside a busy process", busy, 0.4), ("once it has ended", after, 0.9)):
            shares = tuple(rates[i] / base for rates in found)
            figures.append(
                Figure(f"{what}, {name} / on an idle machine", shares, target, behind=f"{base:.2f} a second idle")
            )
    return figures


@contextmanager
def _busy() -> Generator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
