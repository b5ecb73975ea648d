"""Why a second moment does not protect neighbours of six facts edited at once: the corpus, its size, the ridge, or the formula?

python benchmarks/surgery.py moment [--layer 4] [--tokens 5000,20000]

Leak: what the change writes at a held-out neighbour's key, over what is wanted at the edited keys; from keys alone. Where
a row has neighbours kept and KL, the change was served and asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probewire.analysis.datasets import load_set
from probewire.analysis.editing import (
    Answers,
    Fact,
    capital_facts,
    measure_facts,
    second_moment,
    solve_delta,
    target_value,
    variant_hooks,
)
from probewire.analysis.editing.keys import preserved_keys, rows_at
from probewire.analysis.editing.measure_facts import general_prompts
from probewire.analysis.editing.solver import likeness
from probewire.analysis.editing.wording import PREFIXES, question_wording
from probewire.analysis.sae import documentation
from probewire.clients import Client, Delta, Variant
from probewire.server.worker.inprocess import InProcessService

FACTS, WORDINGS, STEPS = 6, 2, 8
SENTENCES = (
    "The trains of {} run from the coast to the mountains.",
    "Most farmers in {} grow wheat, and some keep bees.",
    "The people of {} like to sing when the harvest is in.",
    "My aunt came back from {} with two suitcases and a cold.",
    "In winter the rivers of {} freeze for some weeks.",
    "A map of {} hung on the wall of the old school.",
)
"""Of our own, about no capital: what a text that speaks of countries holds."""
Floats = NDArray[np.float64]


def main() -> None:
    """Values once, then every moment by its leak, then some of them served."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--tokens", default="5000,20000", help="of documentation, for the second moment")
    args = parser.parse_args()
    with Client.inprocess(InProcessService.create(dtype="float32", device="cpu")) as client:
        show(client, args.layer, [int(one) for one in args.tokens.split(",")])


def show(client: Client, layer: int, tokens: list[int]) -> None:
    """The table."""
    facts = capital_facts("judge")[:FACTS]
    values = [target_value(client, fact, layer, steps=STEPS, prefixes=PREFIXES[:WORDINGS]) for fact in facts]
    keys, wanted = (np.stack([getattr(one, name) for one in values], axis=1) for name in ("key", "delta"))
    kept, held = preserved_keys(client, facts, layer), held_out(client, facts, layer)
    assert kept is not None  # capitals have neighbours to preserve
    base, few = Answers(client), general_prompts()[::4]
    print(f"{keys.shape[1]} keys of {len(keys)}, {kept.shape[1]} preserved, {held.shape[1]} held out", flush=True)
    print(
        "| moment | ridge | cosine of edited and held-out keys in its metric | leak, none preserved | leak, preserved | kept | KL |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, moment, ridge, served in moments(client, layer, tokens, kept):
        told = f"| {name} | {'–' if moment is None else f'{ridge:g}'} | {likeness(keys, held, moment=moment, ridge=ridge):.2f} |"
        for preserve in (None, kept):
            solved = solve_delta(keys, wanted, moment=moment, preserve=preserve, ridge=ridge)
            told += f" {leak(solved.dense, keys, held):.3f} |"
        if served:
            delta = Variant({f"w_down.{layer}": Delta(solved.a, solved.b)})
            found = measure_facts(client, facts, hooks=variant_hooks(delta), base=base, n_generated=0, unrelated=few)
            assert found.neighbours_kl is not None  # there are neighbours
            told += f" {found.neighbours_kept.right}/{found.neighbours_kept.of} | {found.neighbours_kl.value:.3f} |"
        print(told, flush=True)


def moments(client: Client, layer: int, tokens: list[int], kept: Floats) -> Iterator[tuple[str, Any, float, bool]]:
    """(name, C, ridge, whether it is served too)."""
    yield "none", None, 0.1, True
    site = f"mlp_act.{layer}"
    largest: Any = None
    for n in tokens:
        largest = second_moment(client, documentation(), site, max_tokens=n, progress=False)[site].second
        yield f"documentation, {n:,} tokens", largest, 0.1, True
    for ridge in (1.0, 10.0, 100.0):
        yield f"documentation, {tokens[-1]:,} tokens", largest, ridge, ridge == 10.0
    data = load_set("facts_capitals").data
    edited = {fact.subject for fact in capital_facts("judge")[:FACTS]}
    halves = {
        "sentences about the preserved half": [land for land in data["preserved_half"] if land not in edited],
        "sentences about all countries": [land for land in data["capitals"] if land not in edited],
    }
    for told, lands in halves.items():
        texts = [text.format(land) for text in SENTENCES for land in lands]
        about = second_moment(client, texts, site, max_tokens=10_000, progress=False)[site].second
        yield f"{told}, none of them asked", about, 0.1, True
        share = float(np.trace(largest) / np.trace(about))
        yield "documentation and these, equal traces", largest + share * about, 0.1, True
    own = kept @ kept.T / kept.shape[1]
    share = float(np.trace(largest) / np.trace(own))
    yield "documentation and the preserved keys, equal traces", largest + share * own, 0.1, False
    asked = [form.replace("{}", land) for form in data["forms"] for land in data["capitals"]]
    about = second_moment(client, asked, site, max_tokens=10_000, progress=False)[site].second
    yield "the judged prompts themselves: no fair row", about, 0.1, True


def held_out(client: Client, facts: tuple[Fact, ...], layer: int) -> Floats:
    """[d_mlp, p]: keys of the neighbours that are judged."""
    edited = {fact.subject for fact in facts}
    asked = list(dict.fromkeys(q for fact in facts for q in fact.judged if q.subject not in edited))
    site = f"mlp_act.{layer}"
    return rows_at(client, [question_wording(client, one) for one in asked], [site])[site].T


def leak(delta: Floats, keys: Floats, held: Floats) -> float:
    """Mean ‖Δk‖ at held-out keys, over the mean at edited ones."""
    return float(np.linalg.norm(delta @ held, axis=0).mean() / np.linalg.norm(delta @ keys, axis=0).mean())


if __name__ == "__main__":
    main()
