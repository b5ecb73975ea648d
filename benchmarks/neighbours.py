"""Any two requests in one batch against each alone: thousands of random pairs of plans, on every backend here.

    python benchmarks/neighbours.py [--pairs 2000] [--seed 0] [--backend torch mlx]

Half of the pairs run, half generate; ten architectures take turns. Prints how many differ by more than 1e-5 (relative,
float32), the worst difference, and how to see a pair again. Some plans make much of rounding (a clamp that leaves little
of large rows, before a norm): a pair that differs in float32 is tried again in float64, where it must agree to 1e-9.
Pairs that do are counted apart; the exit status is 1 when one does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the generator of plans is the tests'

import torch
from tqdm import tqdm

from tests.parity.beside import MOST, Beside
from tests.parity.harness import load
from tests.tiny_models import FAMILIES, tiny_checkpoint

EXACT = 1e-9
"""Relative error that counts as rounding in float64."""


def main() -> int:
    """Try the pairs; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000, help="a backend")
    parser.add_argument("--seed", type=int, default=0, help="pair i has seed + i")
    parser.add_argument("--backend", nargs="+", default=["torch", "mlx"], choices=["torch", "mlx"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return max(_try(backend, Path(folder), args.pairs, args.seed) for backend in args.backend)


def _try(backend: str, folder: Path, pairs: int, seed: int) -> int:
    def opened(family: str, dtype: str) -> Beside:
        return Beside(load(backend, tiny_checkpoint(family, folder), dtype=dtype))

    models = {family: opened(family, "float32") for family in FAMILIES}
    precise: dict[str, Beside] = {}
    names, worst, rounding, wrong = list(models), 0.0, list[tuple[float, float]](), 0
    began_s = time.perf_counter()
    for i in tqdm(range(seed, seed + pairs), desc=backend, unit="pair"):
        family = names[i // 2 % len(names)]
        error, what = _asked(models[family], i)
        worst = max(worst, error)
        if error <= MOST:
            continue
        if family not in precise:
            precise[family] = opened(family, "float64")
        again, _ = _asked(precise[family], i)
        if again <= EXACT:
            rounding.append((error, again))
            continue
        wrong += 1
        tqdm.write(f"{backend} {family} seed {i}: {again:.2g} in float64, too; {what[:2000]}")
    seconds = time.perf_counter() - began_s
    print(f"{backend}: {pairs} pairs from seed {seed}, worst {worst:.2g}, {seconds:.0f} s")
    print(f"    beyond {MOST:g} in float32 and {EXACT:g} in float64: {wrong}")
    if rounding:
        exact = max(again for _, again in rounding)
        print(f"    beyond {MOST:g} in float32 alone, as rounding is: {len(rounding)}, at most {exact:.2g} in float64")
    for model in (*models.values(), *precise.values()):
        model.backend.close()
    return int(wrong > 0)


def _asked(model: Beside, seed: int) -> tuple[float, str]:
    return (model.run if seed % 2 else model.generate)(seed)


if __name__ == "__main__":
    sys.exit(main())
