"""Seconds of a risk report and of a validation report on the default model, of a one-layer change; in this process, float32.

python benchmarks/surgery_reports.py [--items 200]     # targets: 60 s and 5 min (VARIANTS.md 8.5), on an idle machine
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np

from probewire.analysis.reports import risk
from probewire.analysis.reports.subject import Subject
from probewire.analysis.reports.validation import validate
from probewire.clients import Client, Delta, Hook, LowRank, Tensor, Variant
from probewire.server.worker.inprocess import InProcessService

LAYER = 10


def main() -> None:
    """Print wall and CPU seconds of each, and what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--as-hooks", action="store_true", help="the delta as the hook that does the same")
    args = parser.parse_args()
    with Client.inprocess(InProcessService.create(dtype="float32", device="cpu")) as client:
        info, rng = client.describe(), np.random.default_rng(0)
        made = Delta(rng.normal(size=(info.d_mlp, 1)) * 0.02, rng.normal(size=(1, info.d_model)))
        variant = Variant({f"w_down.{LAYER}": made})
        place: Any = _as_hooks if args.as_hooks else risk.tried
        risk.tried = place
        print("| report | wall, s | CPU, s | |")
        print("| --- | ---: | ---: | --- |")
        _timed("risk", lambda: risk.assess(client, variant, progress=False))
        with place(client, variant) as subject:
            _timed(f"validation, {args.items} items", lambda: validate(subject, n=args.items, progress=False))


def _timed(name: str, make: Callable[[], Any]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    report = make()
    print(f"| {name} | {time.perf_counter() - wall:.1f} | {time.process_time() - cpu:.1f} | {report} |", flush=True)


@contextmanager
def _as_hooks(client: Client, variant: Variant, *, model: str = "") -> Generator[Subject]:
    delta = variant.deltas[f"w_down.{LAYER}"]
    yield Subject.of(
        client, hooks=[Hook(f"mlp_out.{LAYER}", edit=LowRank(Tensor.of(delta.a), Tensor.of(delta.b)))], model=model
    )


if __name__ == "__main__":
    main()
