"""Tuning on the default model: a circuit beside a random one, all weights with as many trainable numbers, and no training.

python benchmarks/surgery.py tuning [--seeds 3] [--steps 12]; about six minutes of one core; killed, it goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from child import BUILD

from probewire.analysis.circuits.circuit import Circuit
from probewire.analysis.circuits.space import Space
from probewire.analysis.datasets import load_set
from probewire.analysis.tuning.activations import reading
from probewire.analysis.tuning.base import Base, load_base
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.controls import Controlled, tune_with_controls
from probewire.analysis.tuning.examples import TrainExample, batch_of, to_tokens
from probewire.analysis.tuning.steered.association import Probe, strengths
from probewire.backends.checkpoints import resolve_model
from probewire.clients import Delta, Variant

FOLDER = BUILD / "surgery-tuning"
ANSWERS = {"positive": " positive", "negative": " negative"}
COLOURS = {"positive": " blue", "negative": " red"}
UNITS = 256
"""Neurons of the sentiment circuit."""
SCALES = (0.5, 0.75, 1.0)
"""Of a variant: how far it is turned up."""
GENERAL = 16
"""General texts that KL is measured on; the others are those that training may keep."""
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
    """Which held-out opinions are answered right, and KL to the base on each general text, of variants at several scales."""

    def __init__(self, base: Base) -> None:
        torch: Any = __import__("torch")
        self._torch, self._base = torch, base
        held = load_set("sentiment").data["held_out"]
        self._held = batch_of([to_tokens(base.tokenizer, TrainExample("", review(i["text"], "colour"))) for i in held])
        self._positive = np.array([item["label"] == "positive" for item in held])
        self._ids = [base.tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in COLOURS.values()]
        texts = [item["text"] for item in load_set("general").data["texts"][:GENERAL]]
        self._general = batch_of([to_tokens(base.tokenizer, TrainExample("", text)) for text in texts])
        self._before = self._general_log_p()
        self.found: dict[str, dict[str, Any]] = {}
        """Variant's hash → scale → (right [opinion], KL [text])."""

    def _general_log_p(self) -> Any:
        with self._torch.no_grad():
            out = self._base.model(input_ids=self._general["ids"], attention_mask=self._general["mask"])
        return out.logits.log_softmax(-1)

    def _right(self) -> Any:
        """[opinion]; the vocabulary's rows are multiplied with last tokens alone."""
        with self._torch.no_grad():
            rows = self._base.model.model(input_ids=self._held["ids"], attention_mask=self._held["mask"])[0]
            last = rows[self._torch.arange(len(rows)), self._held["mask"].sum(1) - 1]
            logits = self._base.model.lm_head(last)[:, self._ids]
        return (logits[:, 0] > logits[:, 1]).numpy() == self._positive

    def _kl(self) -> Any:
        now, mask = self._general_log_p(), self._general["mask"]
        each = (self._before.exp() * (self._before - now)).sum(-1) * mask
        return (each.sum(1) / mask.sum(1)).numpy()

    def __call__(self, variant: Variant | None) -> dict[str, float]:
        """Accuracy and KL at full scale and at the least of SCALES that reaches AT (infinite where none does)."""
        key = variant.hash if variant else ""
        known = self.found.setdefault(key, {})
        for scale in sorted(SCALES):
            if variant is None:
                known[str(scale)] = (self._right(), np.zeros(GENERAL))
                break
            if str(scale) not in known:
                with _merged(self._base, variant, scale):
                    known[str(scale)] = (self._right(), self._kl())
        enough = [scale for scale in known if known[scale][0].mean() >= AT]
        full = known[str(max(SCALES))] if variant else known[str(min(SCALES))]
        equal = min(enough, key=float) if enough else ""
        return {
            "accuracy": float(full[0].mean()),
            "kl": float(full[1].mean()),
            "scale_at_equal": float(equal) if equal else float("nan"),
            "kl_at_equal": float(known[equal][1].mean()) if equal else float("inf"),
            "trainable": float(variant.manifest.metrics["trainable"]) if variant else 0.0,
        }


@contextmanager
def _merged(base: Base, variant: Variant, scale: float) -> Generator[None]:
    """The base with the variant's deltas in its weights."""
    torch: Any = __import__("torch")
    saved: dict[str, Any] = {}
    deltas: Mapping[str, Delta] = variant.deltas
    for name, delta in deltas.items():
        weight = base.module(name).weight
        saved[name] = weight.data
        weight.data = weight.data + scale * torch.from_numpy(delta.dense().T.copy())
    try:
        yield
    finally:
        for name, data in saved.items():
            base.module(name).weight.data = data


def main() -> None:
    """Circuit, random circuit, all weights, none: accuracy and KL, and KL at equal accuracy, with intervals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    since = time.process_time()
    folder = resolve_model().folder
    base = load_base(folder)
    chosen = sentiment_circuit(base, UNITS)
    layers = sorted({int(unit.site.split(".")[1]) for unit in chosen.units})
    print(f"circuit: {len(chosen)} neurons of layers {layers}", flush=True)
    judge = Judge(base)
    train = [
        TrainExample(review(item["text"], "colour"), COLOURS[item["label"]])
        for item in load_set("sentiment").data["train"]
    ]
    config = TuneConfig(
        method="circuit", steps=args.steps, batch_size=8, lr=args.lr, general_batch=2, checkpoints=0, rank=4, alpha=8.0,
        losses={"task": 0.7, "preserve": 0.2}, weights=("w_gate.*", "w_up.*", "w_down.*"), drift_examples=0,
    )  # fmt: skip
    found = tune_with_controls(
        folder, train, FOLDER / f"circuit-{args.steps}-{args.lr:g}", config, circuit=chosen, measure=_told(judge),
        seeds=range(args.seeds), general=[item["text"] for item in load_set("general").data["texts"][GENERAL:]],
        equal="trainable",
    )  # fmt: skip
    (FOLDER / f"circuit-{args.steps}-{args.lr:g}.json").write_text(json.dumps(found.to_json(), indent=1))
    print(found.table())
    _verdict(found, judge)
    print(f"{time.process_time() - since:.0f} s of CPU")


def _told(judge: Judge) -> Callable[[Variant | None], Mapping[str, float]]:
    def measure(variant: Variant | None) -> Mapping[str, float]:
        found = judge(variant)
        print(f"  {variant.hash[:8] if variant else 'base'}: {found}", flush=True)
        return found

    return measure


def _verdict(found: Controlled, judge: Judge) -> None:
    """Intervals over opinions and texts, means over seeds; and what the specification asks for."""
    right: dict[str, Any] = {}
    kl: dict[str, Any] = {}
    for arm in ("circuit", "random", "all"):
        own = [trial for trial in found.trials if trial.arm == arm and trial.tuned is not None]
        at = [trial.figures["scale_at_equal"] for trial in own]
        known = [judge.found[trial.tuned.variant.hash] for trial in own if trial.tuned]
        right[arm] = np.mean([one[str(max(SCALES))][0] for one in known], axis=0)
        print(
            f"{arm}: accuracy {_interval(right[arm])}, KL {_interval(np.mean([one[str(max(SCALES))][1] for one in known], axis=0))}"
        )
        if not np.isnan(at).any():
            kl[arm] = np.mean([one[str(scale)][1] for one, scale in zip(known, at, strict=True)], axis=0)
            print(f"{arm}: KL at accuracy {AT}: {_interval(kl[arm])}, scales {at}")
    for other in ("random", "all"):
        print(f"accuracy of circuit − {other}: {_interval(right['circuit'] - right[other])}")
        if "circuit" not in kl or other not in kl:
            said = "miss: the circuit does not reach it" if "circuit" not in kl else f"{other} does not reach it"
            print(f"KL of circuit ≤ KL of {other} at accuracy {AT}: {said}")
            continue
        difference = kl["circuit"] - kl[other]
        said = "pass" if difference.mean() <= 0 else "miss"
        print(f"KL of circuit − {other} at accuracy {AT}: {_interval(difference)}: {said}")


def _interval(values: Any) -> str:
    """Mean and its 95 % interval by resampling items."""
    rng, found = np.random.default_rng(0), np.asarray(values, dtype=np.float64)
    means = found[rng.integers(len(found), size=(4000, len(found)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{found.mean():.4f} [{low:.4f}, {high:.4f}]"


if __name__ == "__main__":
    main()
