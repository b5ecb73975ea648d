"""Circuits: checks and company of two on the default model, growth over a family of toys, entangled neurons of four domains.

    python benchmarks/surgery.py circuits [--only ioi,growth,entanglement]

Small on purpose: eight held-out prompts, three toys trained on the spot, some six thousand tokens. The sizes are printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from probewire.analysis.circuits import (
    Circuit,
    Origin,
    ablated,
    growth,
    head_space,
    interference,
    judge,
    rank_units,
    reuse,
)
from probewire.analysis.features import causal_check, collect_rows, domain_texts, entangled_units
from probewire.analysis.reports.circuit import circuit_qa, task_card
from probewire.analysis.tasks import FittedTask, Task, agreement, fit, ioi, repeated_tokens_task
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService

PROMPTS, HELD_OUT, HEADS = 4, 8, 15


def main() -> None:
    """Each part with its own figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="ioi,growth,entanglement")
    parser.add_argument("--tokens", type=int, default=6000, help="of the four domains together (%(default)s)")
    parser.add_argument("--qa", action="store_true", help="all checks of the circuit too: some minutes")
    args = parser.parse_args()
    for part in args.only.split(","):
        start = time.perf_counter()
        print(f"== {part}")
        {"ioi": _company, "growth": _growth, "entanglement": _entanglement}[part](args)
        print(f"== {part}: {time.perf_counter() - start:.0f} s\n", flush=True)


def _default() -> Client:
    return Client.inprocess(InProcessService.create(dtype="float32", device="cpu"))


def _found(client: Client, task: Task, name: str) -> tuple[Circuit, FittedTask]:
    """The 15 best heads by AtP on four prompts, and other prompts."""
    info, fitted = client.describe(), fit(task, client, PROMPTS + HELD_OUT)
    some, others = fitted.batches(PROMPTS)[0], fitted.examples[PROMPTS:]
    prompts = (some.clean, some.corrupt, some.metrics)
    space = head_space(info)
    scores = rank_units(client, *prompts, space)
    origin = Origin(
        model=info.id, model_hash=info.model_hash, task=name, metric="logit difference", method="AtP", seeds=(0,)
    )
    circuit = judge(
        ablated(client, *prompts, space, progress=False), Circuit.of(space, space.top(scores, HEADS), scores, origin)
    )
    means = ablated(client, *prompts, space, ablation="mean", progress=False)
    without = (means.means([circuit.mask])[0] - means.empty) / (means.full - means.empty)
    print(
        f"{name}: {circuit}; of the rest {circuit.origin.completeness:.2f}; under mean ablation without positions {without:.2f}"
    )
    return circuit.with_card(name=name, task=task_card(some)), FittedTask(name, others, {}, "")


def _company(args: argparse.Namespace) -> None:
    """Two circuits, each on its own task and on the other's, and what is left of them together."""
    with _default() as client:
        members = {
            "ioi": _found(client, ioi().where(template="0"), "ioi"),
            "agreement": _found(client, agreement(), "agreement"),
        }
        print(interference(client, members, n_random=20))
        for one in reuse({name: circuit for name, (circuit, _) in members.items()}):
            print(f"shared: Jaccard {one.jaccard:.2f}, by chance {one.expected:.2f} (p = {one.p_value:.3f})")
        if args.qa:
            print(circuit_qa(client, members["ioi"][0], task=ioi(), found_on={"template": "0"}, n=HELD_OUT))


def _growth(_: argparse.Namespace) -> None:
    from tests.analysis.circuits.toy_family import SIZES, VOCABULARY, train_toy

    def copying(_: Client, model: str, seed: int) -> FittedTask:
        return repeated_tokens_task(VOCABULARY, 12, length=16, first=256, seed=seed, model=model)

    clients: dict[str, Client] = {}
    with tempfile.TemporaryDirectory() as folder:
        for d_model in SIZES:
            start = time.process_time()
            path = train_toy(Path(folder, str(d_model)), d_model)
            print(f"d_model {d_model}: trained in {time.process_time() - start:.0f} s of one core", flush=True)
            clients[f"d{d_model}"] = Client.inprocess(InProcessService.create(str(path), dtype="float32", device="cpu"))
        for rank in ("relp", "atp"):
            print(growth(clients, copying, n=12, seeds=3, rank=rank, vocabulary=VOCABULARY))
        for client in clients.values():
            client.close()


def _entanglement(args: argparse.Namespace) -> None:
    with _default() as client:
        for layer in (4, 20):
            rows = collect_rows(client, domain_texts(40), f"mlp_act.{layer}", max_tokens=args.tokens, progress=False)
            found = entangled_units(rows, replicates=100, permuted=3)
            general = f"{len(found.general)} general, {len(found.selective)} selective ({found.expected_selective:.0f} by chance)"
            print(found, general, sep="\n", flush=True)
            if layer == 20:
                units = (found.entangled_without_words or found.entangled)[:3]
                print(causal_check(client, found, rows, units=units, windows=2).losses)


if __name__ == "__main__":
    main()
