"""Tuning on the default model: a circuit against its controls on sentiment, and steered tuning on a known capital.

python benchmarks/surgery_tuning.py circuit | steered [--seeds N]; killed, both go on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from child import BUILD

from probewire.analysis.circuits.circuit import Circuit
from probewire.analysis.circuits.space import Space
from probewire.analysis.datasets import load_set
from probewire.analysis.tuning.activations import reading
from probewire.analysis.tuning.association import Probe, known_association, strengths
from probewire.analysis.tuning.base import Base, load_base
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.controls import tune_with_controls
from probewire.analysis.tuning.examples import TrainExample, batch_of, to_tokens
from probewire.analysis.tuning.losses import preserve_loss
from probewire.analysis.tuning.neuron_choice import Candidate, choose_neurons
from probewire.analysis.tuning.pushes import Push
from probewire.analysis.tuning.steered import (
    Arm,
    Row,
    figures_of,
    measured,
    predicted,
    steered_run,
    sweep_table,
)
from probewire.analysis.tuning.tuning import prepared
from probewire.backends.checkpoints import resolve_model
from probewire.clients import Delta, Variant

FOLDER = BUILD / "surgery-tuning"
ANSWERS = {"positive": " positive", "negative": " negative"}
COLOURS = {"positive": " blue", "negative": " red"}
UNITS = 256
"""Neurons of the sentiment circuit."""
SCALES = (0.25, 0.5, 0.75, 1.0, 1.25)
AT = 0.9
"""Held-out accuracy at which arms are compared."""


# ---- a circuit and its controls ----


def review(text: str, of: str = "sentiment") -> str:
    """The prompt of an opinion. The base answers its sentiment (95 %), so what is taught is a colour for each."""
    return f"Review: {text}\nThe {of} of this review is"


def sentiment_circuit(base: Base, n: int) -> Circuit:
    """The neurons of largest mean |a·∂(logit difference)/∂a| over half of the training prompts."""
    torch: Any = __import__("torch")
    sites = [f"mlp_act.{layer}" for layer in range(base.n_layers)]
    total = np.zeros((base.n_layers, int(base.module("w_down.0").in_features)))
    embed = base.model.get_input_embeddings().weight
    embed.requires_grad_(requires_grad=True)
    for item in load_set("sentiment").data["train"][::4]:
        probe = Probe(review(item["text"]), ANSWERS[item["label"]], tuple(ANSWERS.values()))
        with reading(base, sites) as found:
            value = strengths(base, [probe])[0]
            acts = [found[site] for site in sites]
            gradients = torch.autograd.grad(value, acts)
        total += np.stack([(a * g)[0, 1:].sum(0).abs().detach().numpy() for a, g in zip(acts, gradients, strict=True)])
    embed.requires_grad_(requires_grad=False)
    space = Space(tuple(sites), None, "unit", total.shape[1])
    return Circuit.of(space, space.top(total, n), total)


class Judge:
    """Held-out accuracy, and KL to the base on general texts, of variants at several scales."""

    def __init__(self, base: Base) -> None:
        torch: Any = __import__("torch")
        self._torch, self._base = torch, base
        held = load_set("sentiment").data["held_out"]
        self._prompts = [to_tokens(base.tokenizer, TrainExample("", review(item["text"], "colour"))) for item in held]
        self._right = np.array([item["label"] == "positive" for item in held])
        self._ids = [base.tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in COLOURS.values()]
        texts = [item["text"] for item in load_set("general").data["texts"]]
        self._general = batch_of([to_tokens(base.tokenizer, TrainExample("", text)) for text in texts])
        self._before = self._logits(self._general)

    def _logits(self, batch: Mapping[str, Any]) -> Any:
        with self._torch.no_grad():
            return self._base.model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits

    def at_scale(self, variant: Variant | None, scale: float) -> tuple[float, float]:
        """(accuracy, KL)."""
        saved: dict[str, Any] = {}
        deltas: Mapping[str, Delta] = variant.deltas if variant else {}
        for name, delta in deltas.items():
            weight = self._base.module(name).weight
            saved[name] = weight.data
            weight.data = weight.data + scale * self._torch.from_numpy(delta.dense().T.copy())
        try:
            logits = self._logits(batch_of(self._prompts))
            last = logits[self._torch.arange(len(self._prompts)), [len(p.ids) - 1 for p in self._prompts]]
            said = (last[:, self._ids[0]] > last[:, self._ids[1]]).numpy()
            kl = float(preserve_loss(self._logits(self._general), self._before, self._general["mask"]))
            return float((said == self._right).mean()), kl
        finally:
            for name, data in saved.items():
                self._base.module(name).weight.data = data

    def __call__(self, variant: Variant | None) -> dict[str, float]:
        """At full scale, and KL at the least scale that reaches AT (infinite where none does)."""
        accuracy, kl = self.at_scale(variant, 1.0)
        found = {"accuracy": accuracy, "kl": kl, "kl_at_equal": float("inf"), "scale_at_equal": float("nan")}
        for scale in SCALES if variant else ():
            own, cost = self.at_scale(variant, scale)
            if own >= AT:
                return {**found, "kl_at_equal": cost, "scale_at_equal": scale}
        return found


def circuit(args: argparse.Namespace) -> None:
    """Circuit, random circuit, all weights, none: accuracy and KL, and KL at equal accuracy."""
    folder = resolve_model().folder
    base = load_base(folder)
    chosen = sentiment_circuit(base, UNITS)
    layers = sorted({int(unit.site.split(".")[1]) for unit in chosen.units})
    print(f"circuit: {len(chosen)} neurons of layers {layers}", flush=True)
    judge = Judge(base)
    train = [TrainExample(review(item["text"]), ANSWERS[item["label"]]) for item in load_set("sentiment").data["train"]]
    config = TuneConfig(
        method="circuit", steps=args.steps, batch_size=8, lr=1e-3, general_batch=4, checkpoints=1,
        losses={"task": 0.7, "preserve": 0.2}, weights=("w_gate.*", "w_up.*", "w_down.*"),
    )  # fmt: skip
    since = time.perf_counter()
    found = tune_with_controls(
        folder, train, FOLDER / f"circuit-{args.steps}", config, circuit=chosen, measure=_told(judge),
        seeds=range(args.seeds), general=[item["text"] for item in load_set("general").data["texts"]],
    )  # fmt: skip
    (FOLDER / f"circuit-{args.steps}.json").write_text(json.dumps(found.to_json(), indent=1))
    print(found.table())
    circuits, everything = (found.of(arm, "kl_at_equal") for arm in ("circuit", "all"))
    verdict = "pass" if max(circuits) <= min(everything) and max(circuits) < float("inf") else "miss"
    print(f"KL of circuit ≤ KL of all weights at accuracy {AT}: {verdict} ({time.perf_counter() - since:.0f} s)")


def _told(judge: Judge) -> Callable[[Variant | None], Mapping[str, float]]:
    def measure(variant: Variant | None) -> Mapping[str, float]:
        found = judge(variant)
        print(f"  {variant.hash[:8] if variant else 'base'}: {found}", flush=True)
        return found

    return measure


# ---- steered tuning ----

ARMS: tuple[tuple[Arm, tuple[float, ...]], ...] = (
    ("A", (0.0,)),
    ("B", (10.0, -10.0, 30.0)),
    ("C", (30.0, 10.0, -10.0)),
    ("B", (-30.0, 3.0, -3.0)),
    ("F", (0.0,)),
    ("D", (10.0, -10.0)),
    ("E", (10.0,)),
    ("H", (3.0,)),
)
EPOCHS = (5, 15)
CONFIG = TuneConfig(
    method="steered", steps=EPOCHS[-1], batch_size=8, lr=1e-4, losses={"task": 1.0}, normalise_losses=False
)


def pushes_of(arm: Arm, amount: float, neuron: Candidate, other: tuple[int, float]) -> list[Push]:
    """The pushes of an arm; amounts in units of the neuron's strong value."""
    if arm in ("A", "F"):
        return []
    layer, polarity, threshold = neuron.layer, neuron.polarity, neuron.strong / 4
    if arm == "C":
        unit, strong = other
        return [Push(layer, unit, amount * strong, threshold=strong / 4)]
    if arm == "E":
        return [Push(layer, neuron.unit, amount, threshold=threshold, mode="scale", polarity=polarity)]
    value = polarity * amount * neuron.strong
    return [
        Push(layer, neuron.unit, value, threshold=threshold, mode="all" if arm == "D" else "add", polarity=polarity)
    ]


def steered(args: argparse.Namespace) -> None:
    """Choose a neuron on `choose`, sweep arms, amounts and epochs, and print the table and what it comes to."""
    association = known_association()
    base = load_base(resolve_model().folder)
    FOLDER.mkdir(parents=True, exist_ok=True)
    neuron, candidates = _neuron(base, args.top)
    for one in candidates:
        print(one)
    other = _other(base, neuron)
    path = FOLDER / "steered.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    seen = {(row["arm"], row["amount"], row["seed"]) for row in done if row["epochs"] == EPOCHS[-1]}
    before = {which: measured(base, association, which) for which in ("choose", "report")}
    print({role: float(before["report"][f"A:{role}"].mean()) for role in association.report}, flush=True)
    for seed in range(args.seeds):
        for arm, amounts in ARMS:
            for amount in amounts:
                if (arm, amount, seed) in seen:
                    continue
                config = CONFIG.with_(
                    seed=seed, lr=0.0 if arm == "H" else CONFIG.lr, ascend=arm == "F", method="lora" if arm in ("A", "F") else "steered"
                )  # fmt: skip
                pushes = pushes_of(arm, amount, neuron, other)
                said = _predicted(base, association, config, pushes)
                with path.open("a") as file:
                    for epoch, _ in steered_run(base, association, config, pushes, EPOCHS):
                        found: dict[str, float] = dict(said)
                        for which in ("choose", "report"):
                            after = measured(base, association, which, before[which])
                            found |= {
                                f"{which}:{key}": value for key, value in figures_of(before[which], after).items()
                            }
                        row = Row(arm, amount, epoch, seed, found)
                        file.write(json.dumps(row.to_json()) + "\n")
                        print(arm, amount, epoch, seed, {k: round(v, 3) for k, v in found.items()}, flush=True)
    told(path)


def _predicted(base: Base, association: Any, config: TuneConfig, pushes: list[Push]) -> dict[str, float]:
    objective = prepared(base, config, pushes=pushes)
    try:
        return predicted(objective, association)
    finally:
        if objective.pushes is not None:
            objective.pushes.remove()
        if objective.adapter is not None:
            objective.adapter.model.unload()


def _neuron(base: Base, top: int) -> tuple[Candidate, list[Candidate]]:
    """The candidate of largest drop less that on siblings, on `choose`; kept, so that a killed run goes on with it."""
    path = FOLDER / "neuron.json"
    if path.exists():
        candidates = [Candidate(**one) for one in json.loads(path.read_text())]
    else:
        association = known_association()
        candidates = choose_neurons(
            base, association.choose["target"], association.choose["control"][:6], top=top, controls=19
        )
        path.write_text(json.dumps([{name: getattr(one, name) for name in Candidate.__slots__} for one in candidates]))
    return max(candidates, key=lambda one: one.drop - one.sibling_drop), candidates


def _other(base: Base, neuron: Candidate) -> tuple[int, float]:
    """Another neuron of its layer, the nearest in ‖w_down column‖ at random of ten, with the same strong value."""
    weight = base.module(f"w_down.{neuron.layer}").weight.detach().numpy()
    norms = np.linalg.norm(weight, axis=0)
    near = np.argsort(np.abs(norms - norms[neuron.unit]))[1:11]
    return int(np.random.default_rng(0).choice(near)), neuron.strong


def told(path: Path) -> None:
    """The table, the configuration that the rule chooses, and the share that g₀ predicted."""
    rows = [
        Row(one.pop("arm"), one.pop("amount"), one.pop("epochs"), one.pop("seed"), one)
        for one in map(json.loads, path.read_text().splitlines())
    ]
    brief = ("g0", "d0", "report:unlearned", "report:target_right", "report:preserved", "report:change_control",
             "report:change_near", "report:change_reverse", "report:indirect", "report:ce", "report:kl")  # fmt: skip
    print(sweep_table([Row(r.arm, r.amount, r.epochs, r.seed, {k: r.figures[k] for k in brief}) for r in rows]))
    moved = [r for r in rows if r.epochs == min(x.epochs for x in rows) and r.arm != "H"]
    agree = [np.sign(r.figures["g0"]) == -np.sign(r.figures["report:unlearned"]) for r in moved]
    print(f"the sign of g₀ told the sign of the change in {sum(agree)} of {len(agree)} configurations (first epochs)")
    fit = [
        r for r in rows
        if r.arm == "B" and r.figures["choose:preserved"] >= 0.95 and r.figures["choose:ce"] <= 0.02
    ]  # fmt: skip
    if fit:
        best = max(fit, key=lambda r: r.figures["choose:unlearned"])
        print(f"chosen on `choose`: α {best.amount:g}·strong, {best.epochs} epochs, seed {best.seed}: {best.figures}")


def main() -> None:
    """Parse, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    first = actions.add_parser("circuit")
    first.add_argument("--steps", type=int, default=60)
    second = actions.add_parser("steered")
    second.add_argument("--top", type=int, default=12)
    for action in (first, second):
        action.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    {"circuit": circuit, "steered": steered}[args.action](args)


if __name__ == "__main__":
    main()
