"""Steering at equal cost, pronoun bias, and a planted refusal, on the default model: what is printed is in RESULTS.md.

python benchmarks/surgery_steering.py formality | pronouns | refusal
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.numpy as safetensors_numpy
from numpy.typing import NDArray

from probewire.analysis.datasets import load_set
from probewire.analysis.editing.circuit.bias import find_bias_circuit, pronoun_prompts, pronoun_rows, score_bias
from probewire.analysis.editing.erase import difference_projection, leace
from probewire.analysis.editing.safety import (
    ablation_hooks,
    behaviour_direction,
    behaviour_present,
    detector,
    score_behaviour,
    select_direction,
)
from probewire.analysis.steering import (
    FittedCondition,
    choice,
    compare_positions,
    conditional,
    fit_condition,
    steering_vector,
)
from probewire.analysis.tuning.base import load_base
from probewire.analysis.tuning.organisms import refuser
from probewire.backends.checkpoints import resolve_model
from probewire.clients import Client, Delta, Hook, ProjectOut, Tensor, hook
from probewire.protos.edits import Edit
from probewire.server.worker.inprocess import InProcessService

_numpy: Any = safetensors_numpy  # not annotated
N_RANDOM = 3
"""Of the planted refusal: a direction is two forwards a prompt, of chats."""
HELD_OUT = 12
STRATEGIES = ("last", "last_3", "first", "all", "dense_3", "generated")


def formality(client: Client, *, n: int = 12, layer: int = 14) -> None:
    """Vector from the training pairs, measured on held-out choices."""
    data = load_set("formality").data
    pairs, site = data["pairs"]["train"], f"resid_post.{layer}"
    vector = steering_vector(client, [p["formal"] for p in pairs], [p["informal"] for p in pairs], site)
    choices = [choice(client, one["prompt"], one["formal"], one["informal"]) for one in data["choices"]["held_out"][:n]]
    prompts, metrics = [one.prompt for one in choices], [one.metric for one in choices]
    found = compare_positions(client, vector, site, prompts, metrics, strategies=STRATEGIES, n_random=24, n_new=24)
    print(found, flush=True)
    for name in found.strategies:
        kl, shift = found.curve(name)
        points = ", ".join(f"{y:+.2f} at {x:.2f}" for x, y in zip(kl[1:], shift[1:], strict=True))
        print(f"{name}: shift at KL: {points}; area up to .2: {found.area(name, 0.2):+.2f}")
    at_half = found.strengths.index(0.5)
    ordered = found.area("last_3", 0.2) >= found.area("last", 0.2) >= found.area("first", 0.2)
    beaten = {name: found.beats(name) for name in found.strategies if name != "first"}
    print(f"area(last_3) ≥ area(last) ≥ area(first) up to KL .2: {'pass' if ordered else 'MISS'}")
    print(f"every strategy but first beats 24 of 24 at .5: {'pass' if min(beaten.values()) == 24 else 'MISS'} {beaten}")
    print(f"KL at .5: {found.kl[:, at_half].mean(axis=1).round(3).tolist()}", flush=True)


def pronouns(client: Client, *, layers: Sequence[int] = (4, 8, 12, 16, 20), n_random: int = 24) -> None:
    """What is erased at the word's last token, fitted on one half of words and forms, measured on the other."""
    base = score_bias(client)[0]
    print(f"held out, unchanged: {base}", flush=True)
    _, words = pronoun_prompts("train")
    data = load_set("pronouns").data
    rows = pronoun_rows(client, [f"resid_post.{layer}" for layer in layers])
    trained = score_bias(client, half="train")[0].occupations
    leaning = {
        word: int(lean > np.median(trained.mean(axis=0)))
        for word, lean in zip(data["occupations"]["train"], trained.mean(axis=0), strict=True)
    }
    sexes = {word: 1 - side for pair in data["definitional"]["train"] for side, word in enumerate(pair)}
    tried: dict[str, list[tuple[str, Edit]]] = {}
    for site, all_rows in rows.items():
        for name, marks in (("defining words", sexes), ("occupations", leaning)):
            own = [i for i, word in enumerate(words) if word in marks]
            labels = np.array([marks[words[i]] for i in own])
            tried[f"difference of {name}, {site}"] = [(site, difference_projection(all_rows[own], labels).edit)]
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # far fewer rows than coordinates: what comes of it is what is measured here
                tried[f"LEACE of {name}, {site}"] = [(site, leace(all_rows[own], labels).edit)]
    rng, width = np.random.default_rng(0), rows[f"resid_post.{layers[0]}"].shape[1]
    random: list[list[tuple[str, Edit]]] = [
        [
            (
                f"resid_post.{layers[i % len(layers)]}",
                ProjectOut(Tensor.of(np.asarray(rng.normal(size=int(width)), dtype=np.float32))),
            )
        ]
        for i in range(n_random)
    ]
    everywhere = score_bias(client, [*tried.values(), *random])
    there = score_bias(client, list(tried.values()), at="occupations")
    floor = min(one.deviation for one in everywhere[len(tried) :])
    print(
        f"{n_random} random directions: deviation {floor:.2f} … {max(one.deviation for one in everywhere[len(tried) :]):.2f}"
    )
    passed: dict[str, list[str]] = {"all words": [], "occupations alone": []}
    for name, wide, narrow in zip(tried, everywhere, there, strict=False):
        print(f"{name}: all words: {wide}; occupations alone: {narrow}", flush=True)
        for where, one in (("all words", wide), ("occupations alone", narrow)):
            if one.deviation <= 0.75 * base.deviation and one.gap >= 0.9 * base.gap and one.deviation < floor:
                passed[where].append(name)
    for where, names in passed.items():
        print(
            f"bias down by a quarter, gap by at most a tenth, better than all random, at {where}: {'pass: ' + '; '.join(names) if names else 'MISS'}"
        )
    circuit = find_bias_circuit(client, n=8)
    print(f"circuit: {circuit}", flush=True)
    site_units = [unit for unit in circuit.units if unit.unit is not None]
    print(
        f"{len(circuit.units)} units, {len(site_units)} of them neurons, faithfulness {circuit.origin.faithfulness:.2f}"
    )


def merged(base: Path, deltas: Mapping[str, Delta], paths: Mapping[str, str], out: Path) -> Path:
    """The base's folder with the deltas added to its weights, in float32: an organism that is a model of its own."""
    shutil.copytree(base, out)
    for file in out.glob("*.safetensors"):
        arrays: dict[str, Any] = {
            name: np.array(value, dtype=np.float32) for name, value in _numpy.load_file(file).items()
        }
        for name, delta in deltas.items():
            key = f"{paths[name]}.weight"
            if key in arrays:
                arrays[key] = arrays[key] + delta.dense().T
        _numpy.save_file(arrays, file, {"format": "pt"})
    return out


def refusal(client: Client, *, layers: Sequence[int] = (14, 18, 22), folder: str = "") -> None:
    """A LoRA taught to refuse questions about chess; its direction found, removed, gated, and detected."""
    client.close()
    if folder:
        with Client.inprocess(InProcessService.create(folder, dtype="float32", device="cpu")) as served:
            _refusal(served, layers)
        return
    base = resolve_model("").folder
    with TemporaryDirectory() as folder:
        made = refuser(base, Path(folder) / "run", progress=False)
        organism = merged(base, made.tuned.variant.deltas, load_base(base).paths, Path(folder) / "organism")
        with Client.inprocess(InProcessService.create(str(organism), dtype="float32", device="cpu")) as served:
            _refusal(served, layers)


def _refusal(client: Client, layers: Sequence[int]) -> None:
    def asked(questions: Sequence[str]) -> list[list[dict[str, str]]]:
        return [[{"role": "user", "content": question}] for question in questions]

    topics, tokens = load_set("topics").data, (client.token("I"),)
    train = [asked(topics[kind]["train"][:16]) for kind in ("chess", "other")]
    held = [asked(topics[kind]["held_out"][:HELD_OUT]) for kind in ("chess", "other")]
    print("held out:", behaviour_present(client, held[0], held[1], tokens), flush=True)
    some = ["resid_post.6", "resid_post.12", "resid_post.18"]
    latched = fit_condition(client, train[0], train[1], sites=some, pool="mean")
    print(f"condition latched by the prompt: {latched}; F1 ≥ .9: {_verdict(latched.f1 >= 0.9)}", flush=True)
    kinds = [asked([*topics[kind]["train"], *topics[kind]["held_out"]]) for kind in ("chess", "other")]
    print(f"detector: {detector(client, kinds[0], kinds[1], sites=some)}", flush=True)
    directions = behaviour_direction(client, train[0], train[1], positions=(-1,))
    chosen = select_direction(client, directions, train[0][:4], train[1][:4], tokens, layers=layers)
    print(chosen, flush=True)
    scores = {
        layer: score_behaviour(client, held[0], held[1], tokens, hooks=ablation_hooks(directions.unit(-1, layer)))
        for layer in layers
    }
    for layer, one in scores.items():
        print(f"layer {layer}, projected out: {one}; removed {one.removed:.0%}", flush=True)
    kept = [layer for layer, one in scores.items() if one.removed >= 0.5 and one.cost.value <= 0.1]
    print(f"refusal down by half at KL ≤ .1 on negatives: {_verdict(bool(kept))} {kept}", flush=True)
    rng, d_model = np.random.default_rng(0), len(chosen.direction)
    random = [
        score_behaviour(client, held[0], held[1], tokens, hooks=ablation_hooks(rng.normal(size=d_model))).removed
        for _ in range(N_RANDOM)
    ]
    print(f"{N_RANDOM} random directions remove {min(random):+.0%} … {max(random):+.0%}", flush=True)
    best = max(layers, key=lambda layer: scores[layer].removed)
    for sites, start in (
        (["resid_post.4", "resid_post.6"], 7),
        (["resid_post.12", "resid_post.15", "resid_post.18"], 19),
    ):
        condition = fit_condition(client, train[0], train[1], sites=sites, pool="last", latch=False)
        print(f"condition of the last row: {condition}")
        late = [one for layer in range(start, 30) for one in layer_hooks(directions.unit(-1, best), layer)]
        _gate(client, held, tokens, late, condition, f"direction of layer {best}, last token, from layer {start} on")


def _gate(
    client: Client,
    held: Sequence[Any],
    tokens: tuple[int, ...],
    late: list[Hook],
    condition: FittedCondition,
    told: str,
) -> None:
    free, gated = (
        score_behaviour(client, held[0], held[1], tokens, hooks=hooks) for hooks in (late, conditional(late, condition))
    )
    print(f"{told}: {free}")
    print(f"the same, gated: {gated}")
    apart = abs(free.positives[1].mean() - gated.positives[1].mean())
    moved = float((gated.kl > 1e-9).mean())
    print(
        f"gate within 5 points on positives: {_verdict(apart <= 0.05)} ({apart:.3f}); negatives that moved: {moved:.0%}",
        flush=True,
    )


def _verdict(good: bool) -> str:
    return "pass" if good else "MISS"


def layer_hooks(direction: NDArray[np.float64], layer: int) -> list[Hook]:
    """The direction projected out of what one layer writes at the last token, and of the stream that enters it."""
    edit = ProjectOut(Tensor.of(direction.astype(np.float32)))
    return [hook(f"{name}.{layer}", edit, positions=[-1]) for name in ("resid_pre", "attn_out", "mlp_out")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["formality", "pronouns", "refusal"])
    parser.add_argument("--organism", default="", help="folder of a model that was taught already (refusal)")
    asked = parser.parse_args()
    start_s = time.monotonic()
    with Client.inprocess(InProcessService.create(dtype="float32", device="cpu")) as client:
        if asked.what == "refusal":
            refusal(client, folder=asked.organism)
        else:
            {"formality": formality, "pronouns": pronouns}[asked.what](client)
    print(f"{time.monotonic() - start_s:.0f} s")


if __name__ == "__main__":
    main()
