"""The card of a variant's folder, README.md: what its manifest says, for people. Nothing reads it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..spec import Plan
from .delta import Delta
from .manifest import Base, Manifest

__all__ = ["card"]

MOST_ROWS = 400
_NORMS = ("norm", "relative_norm", "singular", "base_singular")


def card(deltas: Mapping[str, Delta], plan: Plan, manifest: Manifest, content: str, *, in_peft: bool) -> str:
    """Markdown, with the front matter that the Hugging Face hub reads. `in_peft`: the folder is a whole PEFT adapter."""
    parts = [
        _front_matter(manifest, in_peft=in_peft),
        f"# {manifest.name or 'A variant'}",
        manifest.description,
        _base(manifest.base),
        _changes(deltas, plan, manifest, in_peft=in_peft),
        _section("How it was made", {"method": manifest.method, **manifest.options}),
        _section("Made of", {str(i + 1): part for i, part in enumerate(manifest.made_of)}),
        _section("Circuit that chose the weights", manifest.circuit),
        _section("Data", manifest.data),
        _section("Measured when it was made", manifest.metrics, none="Nothing was measured when it was made."),
        _section("Reports", manifest.reports, none="No risk and no validation report was made."),
        _section("Made", manifest.made),
        f"Content: `sha256:{content}` (base, deltas and hooks; held against them whenever it is loaded).",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(manifest: Manifest, *, in_peft: bool) -> str:
    told: dict[str, Any] = {"tags": ["probewire", "variant", *manifest.tags]}
    if manifest.base.id:
        told["base_model"] = manifest.base.id
    if manifest.licence:
        told["license"] = manifest.licence
    if in_peft:
        told["library_name"] = "peft"
    return "\n".join(
        ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in told.items()), "---"]
    )


def _base(base: Base) -> str:
    if not base.model_hash:
        return "Of no particular model yet: whatever it is loaded onto binds it, where all shapes fit."
    what = ", ".join(one for one in (base.family, base.architecture, base.dtype) if one)
    return (
        f"A change of `{_plain(base.id)}` ({what}; {base.n_layers} layers, width {base.d_model}, vocabulary {base.vocab_size}), "
        f"model hash `{base.model_hash}`. Another model refuses it unless told `rebase`."
    )


def _changes(deltas: Mapping[str, Delta], plan: Plan, manifest: Manifest, *, in_peft: bool) -> str:
    n_bytes = sum(delta.n_bytes for delta in deltas.values())
    lines = ["## What it changes", f"{len(deltas)} weights ({n_bytes:,} bytes in float32) and {len(plan.hooks)} hooks."]
    if plan.hooks:
        sites = ", ".join(f"`{_plain(one.site)}`" for one in plan.hooks[:20])
        lines.append(f"Hooks at {sites}{' …' if len(plan.hooks) > 20 else ''}: PEFT knows nothing of them.")
    elif not in_peft:
        lines.append("PEFT has no such adapter; `Variant.load` reads it.")
    if deltas:
        known = [name for name in _NORMS if any(name in norms for norms in manifest.norms.values())]
        told = {"norm": "‖ΔW‖", "relative_norm": "‖ΔW‖/‖W‖", "singular": "σ₁(ΔW)", "base_singular": "σ₁(W)"}
        rows = ["| " + " | ".join(["weight", "rank", *(told[name] for name in known)]) + " |"]
        rows.append("| --- |" + " ---: |" * (1 + len(known)))
        for name, delta in list(deltas.items())[:MOST_ROWS]:
            figures = [_number(manifest.norms.get(name, {}).get(one)) for one in known]
            rows.append("| " + " | ".join([f"`{_plain(name)}`", str(delta.rank), *figures]) + " |")
        if len(deltas) > MOST_ROWS:
            rows.append(f"| and {len(deltas) - MOST_ROWS} more | |" + " |" * len(known))
        lines.append("\n".join(rows))
    return "\n\n".join(lines)


def _section(title: str, given: Mapping[str, Any], *, none: str = "") -> str:
    told = {key: value for key, value in given.items() if value not in ("", None)}
    if not told:
        return none
    lines = [f"- {_plain(str(key))}: {_value(value)}" for key, value in told.items()]
    return f"## {title}\n\n" + "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _plain(value)
    return f"`{_plain(json.dumps(value, ensure_ascii=False))}`"


def _plain(text: str) -> str:
    """On one line, and without what would end code or a table's cell."""
    return " ".join(text.split()).replace("`", "'").replace("|", "/")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "–"
