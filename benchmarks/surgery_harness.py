"""lm-evaluation-harness on the default model, three ways, item by item: its tool over a server, our model, its own model.

python benchmarks/surgery_harness.py [--items 40] [--only pw_documentation]     # needs probewire[validate,torch]; float32
python benchmarks/surgery_harness.py --variant     # the same of a loaded variant: the tool names it in the model, ours by variant=
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from servers import model_folder, probewire

from probewire.analysis.reports.harness import ProbewireLM
from probewire.analysis.reports.harness_tasks import DOCUMENTATION, HARNESS_TASKS, documents, write_harness_tasks
from probewire.clients import Client, Delta, Variant


def main() -> None:
    """Print a table: seconds of each way, accuracy or perplexity, and the largest difference of an item."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--only", nargs="+", choices=HARNESS_TASKS, default=list(HARNESS_TASKS))
    parser.add_argument(
        "--variant", action="store_true", help="of a variant; without the harness's own model, which has none"
    )
    asked = parser.parse_args()
    items, names = asked.items, asked.only
    with tempfile.TemporaryDirectory() as folder, probewire("torch", dtype="float32") as served:
        tasks = write_harness_tasks(folder, n=items, texts=documents(max(4, items // 5)))
        remote = {
            "base_url": f"{served.http}/v1/completions",
            "model": "SmolLM2-135M-Instruct",
            "tokenizer_backend": "remote",
            "num_concurrent": 4,
        }
        # float32's log_softmax of torch is 9e-6 nats a token too high, always: 9e-3 of a text of a thousand.
        theirs = {"pretrained": str(model_folder()), "device": "cpu", "dtype": "float32", "softmax_dtype": "float64"}
        with Client(served.grpc) as client:
            remote["model"] = client.describe().id
            uses = ""
            if asked.variant:
                client.load_variant(_noise(client), name="noise")
                remote["model"], uses = f"{remote['model']}:noise", "noise"
            found = {
                "tool over the server": _timed("local-completions", tasks, names, remote, 16),
                "ProbewireLM": _timed(ProbewireLM(client, variant=uses, progress=False), tasks, names, None, None),
            }
            if not asked.variant:
                found["the harness's hf"] = _timed("hf", tasks, names, theirs, 8)
    print(
        "| task | items | figure | " + " | ".join(f"{way}, s" for way in found) + " | largest difference of an item |"
    )
    print("| --- | ---: | ---: |" + " ---: |" * (len(found) + 1))
    for name in names:
        _row(name, found)


def _noise(client: Client) -> Variant:
    """Rank 1 at one weight, enough to move figures."""
    rng, info = np.random.default_rng(0), client.describe()
    return Variant({"w_down.10": Delta(rng.normal(size=(info.d_mlp, 1)) * 0.1, rng.normal(size=(1, info.d_model)))})


def _timed(
    model: Any, tasks: Path, names: list[str], args: Any, batch_size: int | None
) -> dict[str, tuple[dict[str, Any], float]]:
    """Task → its result and seconds; the model is made once more for each, where it is given by name."""
    found: dict[str, tuple[dict[str, Any], float]] = {}
    for name in names:
        manager: Any = import_module("lm_eval.tasks").TaskManager(include_path=str(tasks), include_defaults=False)
        began = time.perf_counter()
        result = import_module("lm_eval.evaluator").simple_evaluate(
            model, model_args=args, tasks=[name], task_manager=manager, batch_size=batch_size, bootstrap_iters=0
        )
        found[name] = (dict(result), time.perf_counter() - began)
    return found


def _row(name: str, found: dict[str, dict[str, tuple[dict[str, Any], float]]]) -> None:
    values = {way: _values(result[name][0], name) for way, result in found.items()}
    ours = values["ProbewireLM"]
    worst = max(float(np.abs(one - ours).max()) for one in values.values())
    metric = "byte_perplexity,none" if name == DOCUMENTATION else "acc,none"
    figures = {f"{result[name][0]['results'][name][metric]:.4f}" for result in found.values()}
    seconds = " | ".join(f"{result[name][1]:.1f}" for result in found.values())
    print(f"| {name} | {len(ours)} | {' / '.join(sorted(figures))} | {seconds} | {worst:.1e} |")


def _values(result: dict[str, Any], name: str) -> np.ndarray[Any, Any]:
    samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
    if name == DOCUMENTATION:
        return np.array([sample["filtered_resps"][0] for sample in samples], dtype=np.float64)
    return np.array([[one[0] for one in sample["filtered_resps"]] for sample in samples], dtype=np.float64)


if __name__ == "__main__":
    main()
