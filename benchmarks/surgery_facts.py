"""Knowledge editing on the default model: which layer, single facts, six at once, one after the other, methods beside each other.

python benchmarks/surgery.py facts [--parts layers,single,joint,sequence] [--tokens 20000] [--layer N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probewire.analysis.editing import (
    Answers,
    Fact,
    FactScores,
    TargetValue,
    capital_facts,
    choose_layer,
    edit_facts,
    edit_sequence,
    in_context,
    measure_facts,
    second_moment,
    steered,
    synthetic_facts,
    target_value,
)
from probewire.analysis.editing.measure_facts import general_prompts
from probewire.analysis.editing.wording import PREFIXES
from probewire.analysis.sae import documentation
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService

PARTS = ("layers", "single", "joint", "sequence")
ALL_GENERAL = 64


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done: a busy machine asks for less."""

    wordings: int
    steps: int
    unrelated: int
    n_generated: int

    @property
    def edit(self) -> dict[str, Any]:
        """Options of `edit_facts` and what calls it."""
        return {"prefixes": PREFIXES[: self.wordings], "value": {"steps": self.steps}}

    @property
    def few(self) -> tuple[str, ...]:
        """Every so many of the general prompts."""
        return general_prompts()[:: max(ALL_GENERAL // self.unrelated, 1)]

    def target(self, client: Client, fact: Fact, layer: int) -> TargetValue:
        """The value of a fact."""
        return target_value(client, fact, layer, steps=self.steps, prefixes=PREFIXES[: self.wordings])


JOINT = 6


class Report:
    """Figures as they come, printed and kept in one file."""

    def __init__(self, path: Path) -> None:
        self._path, self._started = path, time.monotonic()
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, value: Any, told: str = "") -> None:
        """One figure, and the lines to print."""
        self.found[name] = value
        self._path.write_text(json.dumps(self.found, indent=1, ensure_ascii=False))
        print(f"[{time.monotonic() - self._started:6.0f} s] {name}\n{told or value}\n", flush=True)


def main() -> None:
    """All parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--tokens", type=int, default=20_000, help="of the corpus for the second moment")
    parser.add_argument("--layers", default="3,5,8,10,12", help="to search")
    parser.add_argument("--baselines", type=int, default=12, help="facts that baselines are tried on")
    parser.add_argument("--sequence", type=int, default=24, help="facts one after the other")
    parser.add_argument("--every", type=int, default=3, help="facts of the sequence between two measurements")
    parser.add_argument("--wordings", type=int, default=len(PREFIXES), help="that a key and a value are the mean of")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--unrelated", type=int, default=ALL_GENERAL, help="general prompts")
    parser.add_argument("--generated", type=int, default=24, help="tokens of each generation prompt; 0: none")
    parser.add_argument("--layer", type=int, default=None, help="leave out the search")
    parser.add_argument("--out", type=Path, default=Path("surgery_facts.json"))
    args = parser.parse_args()
    parts = args.parts.split(",")
    report, size = Report(args.out), Size(args.wordings, args.steps, args.unrelated, args.generated)
    with Client.inprocess(InProcessService.create(dtype="float32", device="cpu")) as client:
        base = Answers(client)
        layer = args.layer
        if "layers" in parts:
            layer = layers(client, base, [int(one) for one in args.layers.split(",")], report)
        if layer is None:
            layer = int(report.found["layer"])
        facts = capital_facts("judge")
        values = single(client, base, facts, layer, args.baselines, size, report) if "single" in parts else []
        if "joint" in parts:
            joint(client, base, facts[:JOINT], layer, args.tokens, values[:JOINT], size, report)
        if "sequence" in parts:
            sequence(client, base, layer, args.sequence, args.every, size, report)


def layers(client: Client, base: Answers, tried: Sequence[int], report: Report) -> int:
    """The search, on the eight facts that nothing is judged by; two wordings and eight steps a value, so that it is short."""
    chosen = choose_layer(
        client,
        capital_facts("choose"),
        tried,
        base=base,
        prefixes=PREFIXES[:2],
        value={"steps": 8},
        on_layer=lambda layer, score: print(f"layer {layer}: {score:.3f}", flush=True),
        progress=False,
    )
    told = {layer: pooled(found) for layer, found in chosen.details.items()}
    lines = [f"{layer}\n{_lines(one)}" for layer, one in told.items()]
    report.add("layers", {"scores": dict(chosen.scores), "details": told}, "\n".join([str(chosen), *lines]))
    report.add("layer", chosen.layer)
    return chosen.layer


def single(
    client: Client, base: Answers, facts: Sequence[Fact], layer: int, n_baselines: int, size: Size, report: Report
) -> list[TargetValue]:
    """Each of twelve facts alone; the first few by the baselines too."""
    values: list[TargetValue] = []
    rows: dict[str, list[FactScores]] = {}
    for number, fact in enumerate(facts):
        start = time.process_time()
        values.append(size.target(client, fact, layer))
        seconds = time.process_time() - start
        for name, options in ways(client, fact, layer, values[-1], size, baselines=number < n_baselines).items():
            rows.setdefault(name, []).append(measure_facts(client, fact, base=base, **options))
        print(f"{fact}: {rows['exact'][-1].score:.3f}, value in {seconds:.1f} s of the processor", flush=True)
        for name, found in rows.items():
            report.found[f"single {name}"] = {"pooled": pooled(found), "each": [one.to_json() for one in found]}
    for name, found in rows.items():
        report.add(f"single {name}", report.found[f"single {name}"], _lines(pooled(found)))
    return values


def ways(
    client: Client, fact: Fact, layer: int, value: TargetValue, size: Size, *, baselines: bool
) -> dict[str, dict[str, Any]]:
    """What `measure_facts` is told for each way to change a fact."""
    exact = edit_facts(client, fact, layers=layer, values=[value])
    rome = edit_facts(client, fact, method="rome", layers=layer, values=[value])
    few = {"n_generated": 0, "unrelated": size.few[::4]}
    whole = {"n_generated": size.n_generated, "unrelated": size.few}
    found: dict[str, dict[str, Any]] = {"exact": {"hooks": exact.hooks, **whole}, "rome": {"hooks": rome.hooks, **few}}
    if baselines:
        tuned = edit_facts(client, fact, method="finetune", layers=layer)
        found["fine-tuned"] = {"hooks": tuned.hooks, **few}
        found["in context"] = {"context": in_context(fact), **few}
        found["added everywhere"] = {"hooks": steered(value), **few}
    return found


def joint(
    client: Client,
    base: Answers,
    facts: Sequence[Fact],
    layer: int,
    tokens: int,
    values: Sequence[TargetValue],
    size: Size,
    report: Report,
) -> None:
    """Six facts at once, methods beside each other, with real second moments."""
    start = time.monotonic()
    moments = second_moment(client, documentation(), f"mlp_act.{layer}", max_tokens=tokens, progress=False)
    report.add("moments", {"tokens": tokens, "seconds": time.monotonic() - start}, str(moments))
    found = list(values) or [size.target(client, fact, layer) for fact in facts]
    ways: dict[str, dict[str, Any]] = {
        "exact, no moment": {},
        "exact with the moment": {"moments": moments},
        "least squares (rome), no moment": {"method": "rome"},
        "least squares (rome) with the moment": {"method": "rome", "moments": moments},
    }
    for lam in (1.5, 15.0, 150.0):
        ways[f"ridge (memit), λ {lam:g}"] = {"method": "memit", "moments": moments, "solver": {"lam": lam}}
    for tau in (0.1, 0.3, 0.6):
        ways[f"null space, τ {tau:g}"] = {"method": "null_space", "moments": moments, "solver": {"tau": tau}}
    for name, options in ways.items():
        edited = edit_facts(client, facts, layers=layer, values=found, prefixes=PREFIXES[: size.wordings], **options)
        scores = measure_facts(client, facts, hooks=edited.hooks, base=base, n_generated=0, unrelated=size.few)
        norm = edited.variant.deltas[f"w_down.{layer}"].norm()
        report.add(f"joint {name}", {**scores.to_json(), "norm": norm}, f"‖Δ‖ {norm:.1f}\n{scores}\n{edited}")
    spread = [max(layer - 2, 0), max(layer - 1, 0), layer]
    edited = edit_facts(client, facts, layers=spread, values=found, prefixes=PREFIXES[: size.wordings])
    scores = measure_facts(client, facts, hooks=edited.hooks, base=base, n_generated=0, unrelated=size.few)
    report.add(f"joint exact, spread over {spread}", scores.to_json(), f"{scores}\n{edited}")


def sequence(client: Client, base: Answers, layer: int, n: int, every: int, size: Size, report: Report) -> None:
    """Twelve capitals, the eight of the search, four invented people: one after the other."""
    facts = [*capital_facts("judge"), *capital_facts("choose"), *synthetic_facts("choose")[:4]][:n]
    for keep in (True, False):
        name = "sequence, earlier keys preserved" if keep else "sequence, rome, earlier keys not preserved"
        found = edit_sequence(
            client,
            facts,
            layers=layer,
            method="exact" if keep else "rome",
            keep_earlier=keep,
            every=every,
            unrelated=size.few,
            **size.edit,
            base=base,
            on_point=lambda point: print(point, flush=True),
            progress=False,
        )
        report.add(name, [_point(one) for one in found.curve], str(found))


def pooled(found: Sequence[FactScores]) -> dict[str, Any]:
    """Counts added up over single edits; means of means."""
    told: dict[str, Any] = {}
    for name, first in ((key, getattr(found[0], key)) for key in found[0].__dataclass_fields__):
        if hasattr(first, "right"):
            right, of = (sum(getattr(getattr(one, name), part) for one in found) for part in ("right", "of"))
            told[name] = type(first)(right, of).to_json()
        elif hasattr(first, "low"):
            each = [getattr(one, name).value for one in found]
            told[name] = {"mean": sum(each) / len(each), "largest": max(each)}
    return told


def _lines(told: dict[str, Any]) -> str:
    return "\n".join(f"  {name:<19} {value}" for name, value in told.items())


def _point(point: Any) -> dict[str, Any]:
    values = {name: getattr(point, name) for name in point.__dataclass_fields__}
    return {name: value.to_json() if hasattr(value, "to_json") else value for name, value in values.items()}


if __name__ == "__main__":
    main()
