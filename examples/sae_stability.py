"""Do SAEs that differ in their seed alone find the same latents? Three seeds, beside dictionaries that were never trained on text.

PWMCC is the mean over pairs of the best |cos| of each latent in the other dictionary. Random directions are the weakest
control; noise with the covariance of the data is the one to beat.

    python examples/sae_stability.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plots import OUTPUT
from serving import arguments, connected

from probewire.analysis.sae.data.batches import ArrayBatches
from probewire.analysis.sae.data.collect import collect
from probewire.analysis.sae.data.documentation import documentation
from probewire.analysis.sae.model.configs import TrainConfig
from probewire.analysis.sae.seeds.controls import gaussian_like, random_dictionaries
from probewire.analysis.sae.seeds.stability import decoders, stability
from probewire.analysis.sae.training.training import train
from probewire.clients import Client

SITE, ROWS, D_SAE, K, STEPS, BATCH, SEEDS = "resid_post.15", 12_000, 288, 16, 120, 256, (0, 1, 2)
FOLDER = OUTPUT / "sae_stability"


def main() -> None:
    """Collect once, train three on the rows and three on noise like them, compare."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        rows = collected(client, args.model)
    kinds = {"trained on text": rows, "trained on noise of its covariance": gaussian_like(rows, 0)}
    found = {name: stability(decoders(folders(name, values))) for name, values in kinds.items()}
    found["random directions"] = stability(random_dictionaries(rows.shape[1], D_SAE, SEEDS))
    for name, one in found.items():
        print(
            f"{name}: PWMCC {one.mean:.3f}, interval over seeds {one.interval('jackknife')}; latents with a match in every seed {one.shared():.1%}"
        )


def collected(client: Client, model: str) -> Any:
    """[row, d_model]."""
    return collect(client, documentation(), SITE, FOLDER / "rows", pack=True, n_tokens=ROWS, model=model).array()


def folders(name: str, rows: Any) -> dict[str, Path]:
    """An SAE a seed."""
    made: dict[str, Path] = {}
    for seed in SEEDS:
        config = TrainConfig(
            architecture="topk", d_sae=D_SAE, k=K, steps=STEPS, batch_size=BATCH, lr=1e-3, seed=seed, checkpoints=1
        )
        batches = ArrayBatches(rows, BATCH, seed, manifest={"site": SITE})
        made[f"seed {seed}"] = train(batches, config, FOLDER / f"{name.split()[-1]}-{seed}").folder
    return made


if __name__ == "__main__":
    main()
