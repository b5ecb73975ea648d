"""A small SAE from scratch: activations of real text, training, the latents of a prompt, and steering by one of them.

python examples/sae_latents.py [--url grpc://host:50051]

Three minutes on two CPU cores. The SAE stays in examples/output/sae, to be used again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from plots import save
from serving import arguments, connected

from probewire.analysis.sae.data.collect import collect
from probewire.analysis.sae.data.documentation import documentation
from probewire.analysis.sae.latents.statistics import compare, count_latents
from probewire.analysis.sae.latents.steering import dose_response, word_ids
from probewire.analysis.sae.model.configs import TrainConfig
from probewire.analysis.sae.model.loaded import load
from probewire.analysis.sae.training.training import train
from probewire.clients import Client, SaeInfo, capture

SITE, D_SAE, K = "resid_post.15", 1152, 32
FOLDER = Path(__file__).parent / "output" / "sae"
PROMPT = "The shortest path between two nodes of a graph is found by"
ABOUT_GRAPHS = [
    "The nodes of the graph are joined by edges, and each edge has a weight.",
    "A tree is a connected graph without cycles, so it has one edge less than it has nodes.",
    "The degree of a node is the number of edges that meet in it.",
    "An edge is a bridge when its removal leaves the graph with more components.",
]
ABOUT_FORMULAS = [
    "The polynomial is divided by its leading coefficient, and the remainder is returned.",
    "The integral of the expression is computed with respect to the first variable.",
    "The matrix is inverted when its determinant is not zero.",
    "A rational number is the quotient of two integers.",
]
WORDS = (" graph", " node", " edge", " nodes", " edges")
NEUTRAL = [
    "The first thing that you need is a",
    "In this example we look at the",
    "It returns the",
    "We begin with the",
]


def main() -> None:
    """Collect, train, look, steer."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        folder = trained(client, args.model)
        with_sae(client, folder, args.model)


def trained(client: Client, model: str) -> Path:
    """An SAE of the site, trained now unless it was before."""
    learn, _ = documentation().split(0.1)
    store = collect(client, learn, SITE, FOLDER / "store", pack=True, n_tokens=24_000, model=model)
    print(f"{store.n_tokens:,} activations of {SITE}; rows left out: {store.manifest['dropped']}")
    config = TrainConfig(architecture="topk", d_sae=D_SAE, steps=200, batch_size=512, k=K, lr=1e-3, lr_decay_steps=40)
    done = train(store.batches(512, seed=0), config, FOLDER / "topk")
    print(f"trained {done.run.steps} steps: {done.folder}, curves in curves.png")
    return done.folder


def with_sae(client: Client, folder: Path, model: str) -> None:
    """Load it, read a prompt's latents, choose one that tells graphs from formulas, and steer by it."""
    info = client.load_sae(folder, site=SITE, name="example", model=model)
    try:
        look(client, info)
        graphs, formulas = (count_latents(client, info, texts) for texts in (ABOUT_GRAPHS, ABOUT_FORMULAS))
        best = next(r for r in compare(graphs, formulas).ranking(50, by="rate") if r.rates[0] > r.rates[1])
        print(
            f"latent {best.latent} fires at {best.rates[0]:.0%} of tokens about graphs, {best.rates[1]:.0%} of the others"
        )
        steer(client, info, folder, best.latent, float(graphs.mean[best.latent]))
    finally:
        client.unload_sae("example", model=model)


def look(client: Client, info: SaeInfo) -> None:
    """The latents of a prompt's last token."""
    run = client.run(PROMPT, capture=[capture(SITE, latents=info.name, top_k=K)], model=info.model)
    rows = run.captures.latents(SITE)
    print(f"{PROMPT!r}: {rows}")
    print(
        "last token:", ", ".join(f"{i} ({v:.1f})" for i, v in zip(rows.ids[-1][:8], rows.values[-1][:8], strict=True))
    )


def steer(client: Client, info: SaeInfo, folder: Path, latent: int, unit: float) -> None:
    """Dose and response beside random latents, drawn."""
    directions = load(folder).w_dec
    others = [int(i) for i in np.random.default_rng(0).permutation(info.d_sae)[:8] if i != latent]
    words = word_ids(client, WORDS, model=info.model)
    found = dose_response(
        client, info.name, latent, directions, NEUTRAL, words, unit=unit, controls=others, model=info.model
    )
    print(found.markdown())
    save(found.figure(), "sae_latents")


if __name__ == "__main__":
    main()
