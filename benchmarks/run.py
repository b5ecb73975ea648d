"""Speed and memory against plain inference and against peers, as ratios within one run.

    make bench          or     python benchmarks/run.py [SECTION …] [--rounds N] [--quick]

Prints markdown for benchmarks/RESULTS.md. Figures are reported, not asserted: the exit status is 0 whether or not they
meet their targets, and 1 when a section could not run.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from attribution import gradients_cost, patching
from latents import latents_cost
from machine import load_warning, machine_line
from memory import mlx_memory, torch_memory
from peer import against_peer
from polite import beside_a_busy_process, polite
from ratios import Figure, report
from sae_stability import sae_stability
from sae_store import store_reads
from sae_training import fed_from_a_store, fed_live
from sharing import cost, fairness
from sizes import QUICK, Sizes
from streams import mlx_streams, torch_streams
from wire_speed import wire

SECTIONS: dict[str, tuple[str, Callable[[Sizes], list[Figure]]]] = {
    "streams": ("(a) Eight generations at once, PyTorch, CPU, bfloat16", torch_streams),
    "streams-mlx": ("(a) Eight generations at once, MLX, CPU, bfloat16", mlx_streams),
    "peer": ("(b) Against interp-engine[server] 1.14.2, eager, CPU, bfloat16", against_peer),
    "wire": ("(c) The wire: one tensor, encode to array", wire),
    "sharing": ("(e) Fairness between users, PyTorch, CPU, bfloat16", fairness),
    "cost": ("(f) What keys, roles, metrics and the audit cost, PyTorch, CPU, bfloat16", cost),
    "polite": ("(q) A polite user beside heavy requests, PyTorch, CPU, bfloat16", polite),
    "busy": ("(r) Beside a busy process on one of the cores, PyTorch, CPU, float32", beside_a_busy_process),
    "patching": ("(h) A patching grid against TransformerLens 4.3, PyTorch, CPU, float32", patching),
    "gradients": ("(i) Gradients and neuron graphs, PyTorch, CPU, float32", gradients_cost),
    "latents": ("(k) Reading latents of an SAE in eight generations, PyTorch, CPU, bfloat16", latents_cost),
    "store": ("(l) The activation store against a sequential read of its bytes", store_reads),
    "fed": ("(m) Training SAEs from the store, against sae-lens from memory, CPU, float32", fed_from_a_store),
    "live": ("(m) Training SAEs from the server's own stream, CPU", fed_live),
    "stability": ("(o) Stability of SAEs across seeds, a planted dictionary, CPU, float32", sae_stability),
    "memory": ("(d) Memory over a long captured generation, PyTorch", torch_memory),
    "memory-mlx": ("(d) Memory over a long captured generation, MLX", mlx_memory),
}


def main() -> int:
    """Run the sections asked for and print what they found; gives the exit status."""
    args = _arguments()
    sizes = QUICK if args.quick else Sizes()
    if args.rounds:
        sizes = replace(sizes, rounds=args.rounds, mlx_rounds=args.rounds)
    sizes = replace(sizes, peer_python=args.peer_python)
    head = "\n".join(filter(None, (machine_line(), load_warning(), _how(args, sizes))))
    reports, failed = [head, ""], list[str]()
    for name in args.sections or SECTIONS:
        title, section = SECTIONS[name]
        print(f"{title} …", flush=True)
        start = time.monotonic()
        try:
            reports.append(report(title, section(sizes)))
        except Exception:  # noqa: BLE001 - the other sections still run, and the exit status tells
            traceback.print_exc()
            failed.append(name)
        print(f"    {time.monotonic() - start:.0f} s", flush=True)
    print("\n" + "\n".join(reports))
    if failed:
        print(f"could not run: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _how(args: argparse.Namespace, sizes: Sizes) -> str:
    command = "make bench" if len(sys.argv) == 1 else f"python benchmarks/run.py {' '.join(sys.argv[1:])}"
    quick = " Quick sizes: these figures say little." if args.quick else ""
    return (
        f"`{command}`: {sizes.rounds} interleaved rounds after a warm-up (MLX: {sizes.mlx_rounds}), generations of "
        f"{sizes.n_new} tokens (MLX: {sizes.mlx_n_new}), captured prompts of {sizes.n_prompt}; each ratio is taken within a "
        f"round, then its median, least and greatest over the rounds.{quick}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--rounds", type=int, default=0, help="how often each thing is timed (default 5, quick 1)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--peer-python", default="", metavar="PATH", help="a Python that has the peer installed")
    args = parser.parse_args()
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown sections {unknown}; allowed: {', '.join(SECTIONS)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
