"""(p) Steering by a latent of the real SAE: a word set's probability against random latents of equal norm.

    python benchmarks/sae_real.py && python benchmarks/sae_steering.py [--folder build/saes]

The latent is the one that tells NetworkX's prose from SymPy's best, on the texts that the SAE was trained on; the words and
the prompts were written down before anything was steered.
"""

from __future__ import annotations

import argparse
import json
import linecache
from pathlib import Path

import numpy as np
from machine import load_warning, machine_line

from probewire.analysis.sae.data.documentation import documentation
from probewire.analysis.sae.latents.statistics import compare, count_latents
from probewire.analysis.sae.latents.steering import dose_response, word_ids
from probewire.analysis.sae.model.loaded import load
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService

WORDS = (" graph", " graphs", " node", " nodes", " edge", " edges", " network", " tree")
PROMPTS = (
    "The first thing that you need is a",
    "In this example we look at the",
    "It returns the number of",
    "We begin with a simple",
    "The function takes a",
    "My favourite thing about the city is the",
    "Yesterday I read about the",
    "The most important part of the story is the",
)
STRENGTHS = (0, 0.5, 1, 2, 3, 4, 6, 8)
N_TEXTS, N_CONTROLS = 150, 24


def main() -> None:
    """Choose, steer, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/saes"))
    folder: Path = parser.parse_args().folder / "trained" / "sae"
    graphs, formulas = (_texts(package) for package in ("networkx", "sympy"))
    with Client.inprocess(InProcessService.create(dtype="bfloat16")) as client:
        info, sae = client.load_sae(folder, name="real"), load(folder)
        one, other = (count_latents(client, info, texts, max_tokens=20_000) for texts in (graphs, formulas))
        found = compare(one, other, ("networkx", "sympy"))
        best = next(r for r in found.ranking(50, by="rate") if r.rates[0] > r.rates[1])
        alive = np.flatnonzero((one.n_fired + other.n_fired) >= 10)
        others = [int(i) for i in np.random.default_rng(0).permutation(alive) if i != best.latent][:N_CONTROLS]
        unit = float(one.mean[best.latent])
        response = dose_response(
            client,
            "real",
            best.latent,
            sae.w_dec,
            PROMPTS,
            word_ids(client, WORDS),
            unit=unit,
            strengths=STRENGTHS,
            controls=others,
        )
    print(
        f"\nLatent {best.latent} fires at {best.rates[0]:.1%} of NetworkX's tokens and {best.rates[1]:.1%} of SymPy's;"
    )
    print(f"a unit is {unit:.1f}, its mean activation where it fires.\n")
    print(response.markdown())
    for strength, text in zip(STRENGTHS, response.texts, strict=True):
        print(f"- {strength:g}: {PROMPTS[0]}{text!r}")
    response.figure(path=folder.parent / "steering.png")
    print(machine_line(), load_warning(), sep="\n")


def _texts(package: str) -> list[str]:
    """Documents of one package, of the side that the SAE was trained on. Their sources name lines of a JSONL file."""
    found: list[str] = []
    for document in documentation().split(0.1)[0]:
        path, _, line = document.source.rpartition(":")
        if json.loads(linecache.getline(path, int(line)))["source"].startswith(package):
            found.append(document.text)
    return found[:N_TEXTS]


if __name__ == "__main__":
    main()
