"""Our tasks in the harness's form: YAML and JSON lines in a folder, for `--include_path` or `simple_evaluate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...protos.errors import NotFound
from ..tasks import Example, Task, agreement, capitals, greater_than, ioi

__all__ = ["HARNESS_TASKS", "write_harness_tasks"]

N = 200
"""Items of a task that is made of a generator."""
_MADE: Mapping[str, Callable[[int], Task]] = {
    "pw_capitals": capitals,
    "pw_agreement": agreement,
    "pw_ioi": ioi,
    "pw_greater_than": greater_than,
}
DOCUMENTATION = "pw_documentation"
HARNESS_TASKS = (*_MADE, DOCUMENTATION)
"""Two choices each, by log-likelihood; the last is the perplexity of documentation (probewire's own texts, unless given)."""


def write_harness_tasks(
    folder: str | Path, names: Sequence[str] = HARNESS_TASKS, *, n: int = N, texts: Iterable[str] | None = None
) -> Path:
    """Write tasks into a folder and give its path; `texts` are what `pw_documentation` reads, else 64 documents.

    The same call writes the same files. Raises NotFound for a task that is not ours, what `documentation` raises.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name not in HARNESS_TASKS:
            raise NotFound(f"there is no task {name!r}; there are {', '.join(HARNESS_TASKS)}")
        if name == DOCUMENTATION:
            rows = [{"text": text} for text in (documents(64) if texts is None else texts)]
        else:
            rows = [_row(i, example) for i, example in enumerate(_MADE[name](n).examples)]
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        config = _ROLLING if name == DOCUMENTATION else _CHOICE
        # JSON is YAML, and the harness needs the data's whole path.
        written = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            **config,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def documents(n: int) -> list[str]:
    """Some of the documentation that probewire fetches for its SAEs, evenly over all of it; at most 4,000 characters each."""
    from ..sae.data.documentation import documentation

    found = [document.text for document in documentation()]
    return [text[:4000] for text in found[:: max(1, len(found) // n)][:n]]


def _row(index: int, example: Example) -> dict[str, Any]:
    """The answers take turns in being first, and each is one of its kind: the harness scores single texts."""
    pair = [example.correct[index % len(example.correct)], example.wrong[index % len(example.wrong)]]
    gold = index % 2
    return {
        "prompt": example.clean,
        "choices": pair[::-1] if gold else pair,
        "gold": gold,
        "labels": dict(example.labels),
    }


_CHOICE: dict[str, Any] = {
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
_ROLLING: dict[str, Any] = {
    "test_split": "test",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [
        {"metric": name, "aggregation": aggregation, "higher_is_better": False}
        for name, aggregation in (
            ("word_perplexity", "weighted_perplexity"),
            ("byte_perplexity", "weighted_perplexity"),
            ("bits_per_byte", "bits_per_byte"),
        )
    ],
    "metadata": {"version": 1.0},
}
