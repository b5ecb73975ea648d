"""(e) How users share a busy model, and (f) what it costs to tell them apart."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median

import prompts
from ratios import Figure, compare, interleaved
from servers import Served, probewire
from sizes import Sizes
from streams import eight_streams

from probewire.clients import Client, ProbewireError

__all__ = ["cost", "fairness"]

GREEDY = 64
"""Generations that one user queues at once."""
EACH = 16
"""Streams that each of four equal users keeps open."""
BESIDE_ONE, BESIDE_MANY = "beside one running generation", f"beside {GREEDY} queued ones"


def fairness(sizes: Sizes) -> list[Figure]:
    """Time to first token beside a greedy user, and Jain's index of four equal ones."""
    with probewire("torch", users=["ada", "bob", "eve", "kim"]) as served, ExitStack() as stack:
        clients = [stack.enter_context(Client(served.grpc, api_key=key)) for key in served.keys]
        greedy, newcomer = clients[:2]
        prompt = prompts.short(greedy)[0]
        variants = {
            BESIDE_ONE: partial(_first_token, greedy, newcomer, prompt, 1, sizes.n_new),
            BESIDE_MANY: partial(_first_token, greedy, newcomer, prompt, GREEDY, sizes.n_new),
        }
        samples = interleaved(variants, rounds=2 * sizes.rounds)
        shares = [_shares(clients, prompt, sizes) for _ in range(max(1, sizes.rounds // 2))]
    waits = tuple(many / one for many, one in zip(samples[BESIDE_MANY], samples[BESIDE_ONE], strict=True))
    behind = " / ".join(
        f"{sorted(samples[name])[len(samples[name]) // 2] * 1e3:.0f}" for name in (BESIDE_MANY, BESIDE_ONE)
    )
    what = f"a second user's time to first token: {BESIDE_MANY} / {BESIDE_ONE}"
    tokens = "; ".join(", ".join(map(str, share)) for share in shares)
    return [
        Figure(what, waits, 2.0, at_most=True, behind=f"{behind} ms"),
        Figure(
            "four equal users, saturated: Jain's index over tokens",
            tuple(map(_jain, shares)),
            0.95,
            unit="",
            behind=tokens,
        ),
    ]


def _first_token(greedy: Client, newcomer: Client, prompt: list[int], n: int, n_new: int) -> float:
    """Seconds from the newcomer's call to their first token, while the other has `n` generations."""
    with _busy(greedy, prompt, n, 40 * n_new):
        start = time.perf_counter()
        with newcomer.stream(prompt, max_new_tokens=4, ignore_eos=True) as stream:
            next(stream)
            return time.perf_counter() - start


@contextmanager
def _busy(client: Client, prompt: list[int], n: int, n_new: int) -> Generator[None]:
    """So many generations of a client accepted, of which at least one runs."""
    with ExitStack() as stack:
        streams = [stack.enter_context(client.stream(prompt, max_new_tokens=n_new, ignore_eos=True)) for _ in range(n)]
        for _ in range(3):
            next(streams[0])
        time.sleep(0.5)  # the rest of those that can run have read their prompts
        yield
    end = time.monotonic() + 30
    while client.activity().requests and time.monotonic() < end:
        time.sleep(0.05)


def _shares(clients: list[Client], prompt: list[int], sizes: Sizes) -> list[int]:
    """Tokens that each user got while all of them kept asking for more."""
    end = time.monotonic() + max(4.0, sizes.n_new / 2)
    counts = [0] * len(clients)

    def ask(user: int, seed: int) -> None:
        length = 8 + (7 * seed + 3 * user) % 40  # everybody's requests are of many lengths
        for n_tokens in _until(end, clients[user], prompt, length):
            counts[user] += n_tokens

    threads = [threading.Thread(target=ask, args=(user, seed)) for seed in range(EACH) for user in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def _until(end: float, client: Client, prompt: list[int], n_new: int) -> Iterator[int]:
    while time.monotonic() < end:
        try:
            with client.stream(prompt, max_new_tokens=n_new, ignore_eos=True) as stream:
                for step in stream:
                    if time.monotonic() > end:
                        return
                    yield int(step.token is not None)
        except ProbewireError:
            time.sleep(0.2)


def _jain(shares: list[int]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(x * x for x in shares))


def cost(sizes: Sizes) -> list[Figure]:
    """Eight streams of one user, with their key, audited, against the same on a box without users."""
    with ExitStack() as stack:
        plain = stack.enter_context(probewire("torch"))
        # One slot more: the last is a newcomer's, and eight streams are to run at once on both.
        shared = stack.enter_context(
            probewire(
                "torch", users=["ada"], options=["--slots", "9", "--audit", f"/tmp/probewire-audit-{time.time_ns()}"]
            )
        )
        open_box, keyed = (stack.enter_context(_client(served)) for served in (plain, shared))
        eight = prompts.short(open_box)
        gateway_s: dict[str, list[float]] = {"open": [], "keyed": []}

        def timed(name: str, served: Served, client: Client) -> float:
            before = _cpu_s(served)
            rate = eight_streams(client, eight, sizes.n_new, {})
            gateway_s[name].append((_cpu_s(served) - before) / sizes.n_new)
            return rate

        variants = {"open": partial(timed, "open", plain, open_box), "keyed": partial(timed, "keyed", shared, keyed)}
        samples = interleaved(variants, rounds=2 * sizes.rounds)
    step_s = 8 / median(samples["open"])
    shares = tuple(
        100 * (more - less) / step_s for more, less in zip(gateway_s["keyed"][1:], gateway_s["open"][1:], strict=True)
    )
    behind = " − ".join(f"{1e3 * median(gateway_s[name]):.2f}" for name in ("keyed", "open"))
    return [
        compare(
            "eight streams with a key, audited / on an open box", samples, ("keyed", "open"), unit="tok/s", target=0.97
        ),
        Figure(
            "the gateway's CPU time for it, as a share of a step of all eight",
            shares,
            3.0,
            at_most=True,
            unit="%",
            behind=f"{behind} ms of {1e3 * step_s:.0f} ms",
            note="does not change when other work shares the cores, as the figure above does",
        ),
    ]


def _cpu_s(served: Served) -> float:
    times = served.gateway.cpu_times()
    return times.user + times.system


def _client(served: Served) -> Client:
    return Client(served.grpc, api_key=served.keys[0] if served.keys else None)
