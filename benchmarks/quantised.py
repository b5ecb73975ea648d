"""The default model plain and in 8 and 4 bits: tokens a second, bytes of weights, and what the process takes.

    python benchmarks/quantised.py [--backend mlx|torch] [--rounds N] [--new N]

Variants: plain bfloat16; on MLX folders that mlx-lm's own converter writes (embeddings too); `--quantize` at load (layers
alone). Each stands in a process of its own, and they generate in turns, one sequence each. Times are CPU seconds of the process,
which other work on the machine changes less than it does wall time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from child import Child, answer_lines
from machine import load_warning, machine_line
from ratios import Figure, compare, interleaved, report
from servers import model_folder

from probewire.backends import load_backend
from probewire.backends.hooks.plan import bind
from probewire.backends.hooks.sequence import Sequence
from probewire.backends.model.footprint import footprint
from probewire.backends.model.limits import Limits
from probewire.protos.model import Sampling
from probewire.protos.spec import Plan

LIMITS = Limits(n_slots=1, context_tokens=512, cache_tokens=512, chunk_tokens=64)
PLAIN = "plain"
MIB = 1 << 20


def main() -> None:
    """Print the figures as markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("mlx", "torch"), default="mlx")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=16, help="tokens a generation")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "QUANTIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(args.backend, Path(args.child[0]), args.child[1])
        return
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        variants = _variants(args.backend, Path(scratch))
        children = {
            name: stack.enter_context(
                Child("quantised.py", "--backend", args.backend, "--child", str(folder), quantize)
            )
            for name, (folder, quantize) in variants.items()
        }
        samples = interleaved(
            {name: partial(_cpu_s, child, args.new) for name, child in children.items()},
            rounds=args.rounds,
            any_order=True,
        )
        print(f"{machine_line()}\n{load_warning()}\n`python benchmarks/quantised.py {' '.join(sys.argv[1:])}`\n")
        print(report(f"Quantised, {args.backend}, bfloat16", _figures(args, samples, children)))


def _figures(args: argparse.Namespace, samples: dict[str, list[float]], children: dict[str, Child]) -> list[Figure]:
    figures: list[Figure] = []
    tokens = {name: [args.new / seconds for seconds in found] for name, found in samples.items()}
    figures += [
        compare(f"tokens a CPU second, {name} / plain", tokens, (name, PLAIN), unit="tok/s")
        for name in children
        if name != PLAIN
    ]
    for what, key in (("weights counted", "weights"), ("resident after load", "rss"), ("most while loading", "peak")):
        base = children[PLAIN].hello[key]
        for name, child in ((name, child) for name, child in children.items() if name != PLAIN):
            share = child.hello[key] / base
            behind = f"{child.hello[key] / MIB:,.0f} / {base / MIB:,.0f} MiB"
            figures.append(Figure(f"{what}, {name} / plain", (share,), behind=behind))
    return figures


def _variants(backend: str, scratch: Path) -> dict[str, tuple[Path, str]]:
    plain = Path(model_folder())
    found: dict[str, tuple[Path, str]] = {PLAIN: (plain, "-")}
    if backend == "mlx":
        found |= {f"mlx-lm's {bits} bit": (_converted(plain, scratch / str(bits), bits), "-") for bits in (8, 4)}
    return found | {f"--quantize {quantize}": (plain, quantize) for quantize in ("int8", "int4")}


def _converted(plain: Path, folder: Path, bits: int) -> Path:
    mlx_lm: Any = import_module("mlx_lm")
    mlx_lm.convert(str(plain), mlx_path=str(folder), quantize=True, q_bits=bits, dtype="bfloat16")
    return folder


def _cpu_s(child: Child, n_new: int) -> float:
    return float(child.ask(n_new=n_new)["cpu_s"])


def _child(backend: str, folder: Path, quantize: str) -> None:
    quantize = quantize.removeprefix("-")
    model = load_backend(
        backend,
        folder,
        model_id="bench",
        limits=LIMITS,
        dtype="bfloat16",
        device="cpu",
        quantize=quantize,
        threads=1,
        check=False,
    )
    memory: Any = psutil.Process().memory_info()
    resource: Any = import_module("resource")
    rng = np.random.default_rng(0)
    prompt = rng.integers(5, 1000, size=8).tolist()

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        engine: Any = model.engine
        n_new = int(question["n_new"])
        plan = bind(
            Plan(), model, mode="generate", input_name="x", tokens=prompt, prompt_length=8, n_rows=8 + n_new - 1
        )
        sequence = Sequence("x", list(prompt), 8, plan, Sampling(max_new_tokens=n_new))
        start = time.process_time()
        engine.admit(sequence)
        while sequence.n_generated < n_new:
            for result in engine.step():
                if result.error is not None:
                    raise result.error
        engine.remove(sequence)
        return {"cpu_s": time.process_time() - start}

    weights = footprint(folder, "bfloat16", LIMITS, backend, quantize).weights
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer_lines(answer, {"weights": weights, "rss": memory.rss, "peak": peak})


if __name__ == "__main__":
    main()
