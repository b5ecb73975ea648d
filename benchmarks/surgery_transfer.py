"""Transfer from the default model to twins of it: one rotated (a known truth), one without its last six layers.

python benchmarks/surgery.py transfer [--tokens 3000] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probewire.analysis.datasets import load_set
from probewire.analysis.editing import (
    Answers,
    Edited,
    Fact,
    ModelMap,
    capital_facts,
    edit_facts,
    fit_map,
    random_map,
    rotated_twin,
    transfer_variant,
    transfer_vector,
    truncated_twin,
    variant_hooks,
)
from probewire.analysis.editing.measure_facts import general_prompts
from probewire.analysis.sae import documentation
from probewire.backends.checkpoints.checkpoint import resolve_model
from probewire.clients import Client, Variant
from probewire.server.worker.inprocess import InProcessService

LAYER = 4
SUBJECTS = ("France", "Japan")


def main() -> None:
    """Maps, vectors and edited facts, with controls and the ceiling."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=3000, help="that a map is fitted to and judged on")
    parser.add_argument("--out", type=Path, default=Path("surgery_transfer.json"))
    args = parser.parse_args()
    folder = resolve_model("").folder
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary, opened("") as source:
        texts = corpus(source, args.tokens)
        facts = [fact for fact in capital_facts("all") if fact.subject in SUBJECTS]
        edits = {fact.subject: edit_facts(source, fact, layers=LAYER) for fact in facts}
        effects = {fact.subject: effect(source, fact, edits[fact.subject].hooks) for fact in facts}
        print("source", json.dumps(effects), flush=True)
        found["source"] = effects
        for name in ("rotated", "truncated"):
            out = Path(temporary, name)
            q = rotated_twin(folder, out) if name == "rotated" else None
            if q is None:
                truncated_twin(folder, out, 24)
                q = np.eye(576)
            with opened(str(out)) as target:
                found[name] = twin(source, target, texts, facts, edits, q, direct=name == "truncated")
            args.out.write_text(json.dumps(found, indent=1))


def opened(folder: str) -> Client:
    """A model in this process."""
    return Client.inprocess(InProcessService.create(folder, dtype="float32", device="cpu"))


def corpus(client: Client, tokens: int) -> list[str]:
    """Prose cut to pieces of some 400 characters, of so many tokens."""
    found: list[str] = []
    seen = 0
    for document in documentation():
        text = document.text[:400]
        found.append(text)
        seen += len(client.tokenize(text).token_ids)
        if seen >= tokens:
            break
    return found


def twin(
    source: Client,
    target: Client,
    texts: Sequence[str],
    facts: Sequence[Fact],
    edits: Mapping[str, Edited],
    q: Any,
    *,
    direct: bool,
) -> dict[str, Any]:
    """What arrives at one target."""
    maps = {
        "procrustes": fit_map(source, target, texts, (LAYER, LAYER), kind="procrustes"),
        "ridge": fit_map(source, target, texts, (LAYER, LAYER)),
        "shuffled": fit_map(source, target, texts, (LAYER, LAYER), shuffled=0),
    }
    maps["random orthogonal"] = random_map(maps["procrustes"])
    told: dict[str, Any] = {"maps": {name: _map(one, q) for name, one in maps.items()}}
    print(json.dumps(told), flush=True)
    forms = load_set("facts_capitals").data["forms"][:2]
    countries = list(load_set("facts_capitals").data["capitals"])
    prompts = (
        [form.replace("{}", country) for form in forms for country in countries]
        + list(general_prompts())
        + list(texts[:10])
    )
    for fact in facts:
        rows: dict[str, Any] = {}
        for name, by in maps.items():
            moved = transfer_variant(source, edits[fact.subject].variant, target, by, prompts, rank=1)
            rows[name] = {"fit": moved.fit, **effect(target, fact, variant_hooks(moved.variant))}
        if direct:
            rows["edited directly"] = effect(target, fact, edit_facts(target, fact, layers=LAYER).hooks)
            rows["the delta as it is"] = effect(target, fact, _as_it_is(edits[fact.subject].variant))
        rows["without"] = effect(target, fact, [])
        told[fact.subject] = rows
        for name, row in rows.items():
            print(fact.subject, name, json.dumps(row), flush=True)
    return told


def effect(client: Client, fact: Fact, hooks: Any) -> dict[str, float]:
    """p(new) at the prompt and at the question-and-answer form, and KL on general prompts."""
    base, after = Answers(client), Answers(client, hooks=hooks)
    prompts = general_prompts()[::4]
    base.read((prompt, "") for prompt in prompts)
    after.read((prompt, "") for prompt in prompts)
    kl = [
        float(np.sum(np.exp(base.next_log_probs(p)) * (base.next_log_probs(p) - after.next_log_probs(p))))
        for p in prompts
    ]
    return {
        "p_new": float(np.exp(after.log_prob(fact.asked, fact.target_new))),
        "p_new_qa": float(np.exp(after.log_prob(fact.paraphrases[1], fact.target_new))),
        "kl": float(np.mean(kl)),
    }


def _map(one: ModelMap, q: Any) -> dict[str, float]:
    """Held-out R², ‖T − Q‖/‖Q‖, and the cosine of a random vector moved by it with Q·v."""
    vector: Any = np.random.default_rng(0).normal(size=576)
    moved: Any = transfer_vector(vector, one)
    expected: Any = q @ vector
    return {
        "held_out_r2": one.held.r2,
        "error": float(np.linalg.norm(one.matrix - q) / np.linalg.norm(q)),
        "cosine": float(moved @ expected / np.linalg.norm(moved) / np.linalg.norm(expected)),
        "rows": one.n_rows,
    }


def _as_it_is(variant: Variant) -> Any:
    return variant_hooks(variant)


if __name__ == "__main__":
    main()
