"""(n) A real SAE on the default model's stream, beside an untrained one and one of a randomly initialised model.

    python benchmarks/sae_real.py [--folder build/saes] [--tokens 160000] [--steps 700] [--full]

Text: the prose of SymPy's and NetworkX's documentation, a tenth of the documents held out for the scores. What is done
already is used again. `--full` adds probing, TPP, SCR and absorption.
"""

from __future__ import annotations

import argparse
import json
import shutil
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from machine import load_warning, machine_line
from servers import model_folder

from probewire.analysis.sae.data.collect import collect
from probewire.analysis.sae.data.contexts import Contexts
from probewire.analysis.sae.data.documentation import documentation
from probewire.analysis.sae.data.store import ActivationStore
from probewire.analysis.sae.model.configs import TrainConfig
from probewire.analysis.sae.scoring.scorecard import EVALUATIONS, score
from probewire.analysis.sae.training.training import train
from probewire.backends.model.weights import CheckpointWeights
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService

save_file: Any = import_module("safetensors.numpy").save_file  # not annotated
SITE, D_SAE, K, CONTEXT = "resid_post.15", 2304, 32, 128


def main() -> None:
    """Collect, train, score, print."""
    args = _arguments()
    folder: Path = args.folder
    learn, held_out = documentation().split(0.1)
    for name, checkpoint in (("trained", ""), ("random model", str(_random_model(folder / "random-model")))):
        with Client.inprocess(InProcessService.create(checkpoint, dtype="bfloat16")) as client:
            here = folder / name.replace(" ", "-")
            store = collect(client, learn, SITE, here / "store", context=CONTEXT, pack=True, n_tokens=args.tokens)
            sae = _trained(store, here / "sae", args.steps)
            inputs = list(islice(Contexts(client, held_out, CONTEXT, pack=True).read(), args.contexts))
            prompts = [context.token_ids.tolist() for context in inputs]
            evaluations = EVALUATIONS if args.full and name == "trained" else ("core",)
            card = score(client, {name: sae}, prompts, evaluations=evaluations, spare="massive")
            card.save(here / "scores")
            print(
                f"\n### {name}: {SITE}, d_sae {D_SAE}, k {K}, {store.n_tokens:,} tokens, {args.steps} steps of 1,024\n"
            )
            print(card.markdown())
    print(machine_line(), load_warning(), sep="\n")


def _trained(store: ActivationStore, folder: Path, steps: int) -> Path:
    config = TrainConfig(
        architecture="topk",
        d_sae=D_SAE,
        steps=steps,
        batch_size=1024,
        k=K,
        lr=1e-3,
        lr_warm_up_steps=50,
        lr_decay_steps=steps // 5,
    )
    return train(store.batches(1024, seed=0), config, folder).folder


def _random_model(folder: Path) -> Path:
    """The default model's shape with the weights that its config says to begin with."""
    if (folder / "model.safetensors").is_file():
        return folder
    source = model_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja", ".txt") and not file.name.endswith(".index.json"):
            shutil.copy(file, folder / file.name)
    std = float(json.loads((source / "config.json").read_text())["initializer_range"])
    rng, weights = np.random.default_rng(0), CheckpointWeights(source)
    arrays = {
        name: np.ones(shape, np.float32) if "norm" in name else rng.normal(0, std, shape).astype(np.float32)
        for name, shape in weights.names().items()
    }
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/saes"))
    parser.add_argument("--tokens", type=int, default=160_000)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--contexts", type=int, default=48, help="held-out contexts that are scored")
    parser.add_argument("--full", action="store_true", help="probing, TPP, SCR and absorption too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
