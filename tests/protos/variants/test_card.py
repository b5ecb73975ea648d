"""The card in a variant's folder says what the manifest says, and is read by nobody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from probewire.protos.edits import Scale
from probewire.protos.hooks import Hook
from probewire.protos.spec import Plan
from probewire.protos.variants.delta import Delta
from probewire.protos.variants.manifest import Base, Manifest
from probewire.protos.variants.variant import Variant

RNG = np.random.default_rng(1)


def variant(**told: Any) -> Variant:
    base = Base(
        id="someone/tiny", model_hash="ab" * 32, family="llama", architecture="LlamaForCausalLM", n_layers=3, d_model=4
    )
    made = Delta(RNG.normal(size=(6, 2)), RNG.normal(size=(2, 4)))
    return Variant({"w_down.1": made}, Plan(), Manifest(name="lyon", base=base, **told))


def front_matter(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_it_holds_provenance_figures_and_costs(tmp_path: Path) -> None:
    made = variant(
        method="rome", options={"layer": 4, "ridge": 0.1}, description="Paris is\nsaid to be Lyon.", licence="apache-2.0",
        tags=("facts: Paris",), made_of=({"hash": "cd" * 32, "name": "parent", "scale": 0.5},), circuit={"id": "circ-1"},
        data={"n": 12, "sha256": "ef" * 32}, norms={"w_down.1": {"rank": 2, "norm": 1.25, "relative_norm": 0.01}},
        metrics={"efficacy": {"value": 0.9, "low": 0.8}}, made={"numpy": "2", "utc": "2026-12-01"},
        reports={"risk.json": "12" * 32},
    )  # fmt: skip
    text = (made.save(tmp_path / "lyon") / "README.md").read_text()
    told = front_matter(text)
    assert told["tags"] == ["probewire", "variant", "facts: Paris"]
    assert (told["base_model"], told["license"]) == ("someone/tiny", "apache-2.0")
    for part in (
        "# lyon", "Paris is\nsaid to be Lyon.", "ab" * 32, made.hash, "- method: rome", "- ridge: `0.1`", '"name": "parent"',
        "circ-1", "ef" * 32, "| `w_down.1` | 2 | 1.25 | 0.01 |", '"value": 0.9', "risk.json", "12" * 32, "2026-12-01",
        f"{made.n_bytes:,} bytes",
    ):  # fmt: skip
        assert part in text, part
    again = Variant.load(tmp_path / "lyon")
    assert again == made


def test_what_was_not_done_is_said(tmp_path: Path) -> None:
    hooked = replace(variant(), plan=Plan((Hook("resid_post.1", edit=Scale(0.5)),)))
    text = (hooked.save(tmp_path / "hooked") / "README.md").read_text()
    assert "Nothing was measured when it was made." in text
    assert "No risk and no validation report was made." in text
    assert "Hooks at `resid_post.1`: PEFT knows nothing of them." in text
    assert "library_name" not in front_matter(text)


def test_texts_of_strangers_stay_in_their_place(tmp_path: Path) -> None:
    made = variant(
        method="a | b\n# not a heading", tags=('"]\nlicense: mine',), licence="x: [", metrics={"`x`\n## y": "1"}
    )
    text = (made.save(tmp_path / "odd") / "README.md").read_text()
    told = front_matter(text)
    assert told["license"] == "x: ["
    assert told["tags"][2] == '"]\nlicense: mine'
    assert "\n# not" not in text
    assert "\n## y" not in text


def test_the_card_is_not_sent_and_not_read(tmp_path: Path) -> None:
    made = variant()
    folder = made.save(tmp_path / "lyon")
    assert "README.md" not in made.files()
    (folder / "README.md").write_text("something else")
    assert Variant.load(folder) == made
