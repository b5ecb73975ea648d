"""Attacks on what was done to a planted refusal, on the default model: what is printed is in RESULTS.md.

python benchmarks/surgery_safety.py organism FOLDER      teach it (chess is refused), once
python benchmarks/surgery_safety.py attacks FOLDER       wordings, around its direction's removal
python benchmarks/surgery_safety.py relearn FOLDER       a few steps of fine-tuning on 8 examples after the removal
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from surgery_steering import merged

from probewire.analysis.datasets import load_set
from probewire.analysis.editing.safety import (
    ablate_direction,
    ablation_hooks,
    attacked,
    behaviour_direction,
    relearn,
)
from probewire.analysis.tuning.base import load_base
from probewire.analysis.tuning.examples import TrainExample
from probewire.analysis.tuning.organisms import REFUSAL, refuser
from probewire.backends.checkpoints import resolve_model
from probewire.clients import Client, Message
from probewire.protos.model import Input
from probewire.server.worker.inprocess import InProcessService

LAYER, N, TAUGHT = 22, 8, 8


def organism(out: Path) -> None:
    """Its merged weights, as a model of its own."""
    base = resolve_model("").folder
    with TemporaryDirectory() as folder:
        made = refuser(base, Path(folder) / "run", progress=False)
        merged(base, made.tuned.variant.deltas, load_base(base).paths, out)


def asked(questions: list[str]) -> list[Input]:
    return [Input(messages=(Message("user", question),)) for question in questions]


def attacks(client: Client) -> None:
    """The direction of layer 22 projected out by hooks, at every token."""
    topics = load_set("topics").data
    train = [asked(topics[kind]["train"][:16]) for kind in ("chess", "other")]
    held = [asked(topics[kind]["held_out"][:N]) for kind in ("chess", "other")]
    direction = behaviour_direction(client, train[0], train[1], positions=(-1,)).unit(-1, LAYER)
    tokens = (client.token("I"), client.token(" I"))
    found = attacked(
        client,
        held[0],
        held[1],
        tokens,
        hooks=ablation_hooks(direction),
        marks=["cannot help"],
        n_new=12,
        progress=False,
    )
    print(found, flush=True)


def relearning(client: Client, folder: Path) -> None:
    """The same removal in weights alone; 8 examples of refusals, and as a control 8 of a sentence of the like elsewhere."""
    topics = load_set("topics").data
    train = [asked(topics[kind]["train"][:16]) for kind in ("chess", "other")]
    held = [asked(topics[kind]["held_out"][:N]) for kind in ("chess", "other")]
    direction = behaviour_direction(client, train[0], train[1], positions=(-1,)).unit(-1, LAYER)
    removal = ablate_direction(client, direction, weights_only=True, name="without")
    lessons = [TrainExample.chat(text, REFUSAL.format("chess")) for text in topics["chess"]["train"][:TAUGHT]]
    control = [TrainExample.chat(text, "That is a good question.") for text in topics["other"]["train"][:TAUGHT]]
    print(
        relearn(
            client, folder, removal, lessons, held[0], held[1], (client.token("I"),), control=control, progress=False
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["organism", "attacks", "relearn"])
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    start_s, used_s = time.monotonic(), time.process_time()
    if given.what == "organism":
        organism(given.folder)
    else:
        with Client.inprocess(InProcessService.create(str(given.folder), dtype="float32", device="cpu")) as client:
            attacks(client) if given.what == "attacks" else relearning(client, given.folder)
    print(f"{time.monotonic() - start_s:.0f} s, {time.process_time() - used_s:.0f} of the processor")


if __name__ == "__main__":
    main()
