"""Any two requests in one batch against each alone: thousands of random pairs of plans, on every backend here.

    python benchmarks/neighbours.py [--pairs 2000] [--seed 0] [--backend torch mlx]

Half of the pairs run, half generate; ten architectures take turns. Prints how many differ by more than 1e-5 (relative,
float32), the worst difference, and how to see a pair again. The exit status is 1 when one differs. Larger differences
count as rounding where a change of the embeddings by 2⁻¹⁹ makes as large a one in the request alone; they are told apart.
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
    models = {family: Beside(load(backend, tiny_checkpoint(family, folder))) for family in FAMILIES}
    names, worst, differing = list(models), 0.0, 0
    began_s = time.perf_counter()
    for i in tqdm(range(seed, seed + pairs), desc=backend, unit="pair"):
        family = names[i // 2 % len(names)]
        error, what = (models[family].run if i % 2 else models[family].generate)(i)
        worst = max(worst, error)
        if not error <= MOST:
            differing += 1
            tqdm.write(f"{backend} {family} seed {i}: {what[:2000]}")
    seconds = time.perf_counter() - began_s
    judged = [error for model in models.values() for error in model.judged]
    print(f"{backend}: {pairs} pairs from seed {seed}, {differing} beyond {MOST:g}, worst {worst:.2g}, {seconds:.0f} s")
    print(f"    counted as rounding though above it: {len(judged)}, at most {max(judged, default=0.0):.2g}")
    for model in models.values():
        model.backend.close()
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
