"""What a model offers, and how it tells people: as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from .sites import ATTENTION_SITES, Site, SitePattern
from .tokens import EndToken

__all__ = ["LayerWidths", "ModelInfo", "SiteInfo", "WeightInfo"]

NAMES_WIDTH, WIDTH = 34, 110
_HEAD = ("sites", "layers", "axes", "run", "gen", "∂", "edits")


@dataclass(frozen=True, slots=True)
class LayerWidths:
    """Layers whose sites of one kind are alike in size."""

    layers: tuple[int, ...]
    widths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """One kind of site and what this model on this backend does with it."""

    name: str
    axes: tuple[str, ...]
    widths: tuple[int, ...]
    """Sizes of the axes after the row axis; 0 where it depends on the request (the key axis). Where layers differ
    (`layer_widths`), those that most layers have."""
    layers: tuple[int, ...] | None = None
    """Layers that offer it; None for global sites."""
    run: bool = True
    generate: bool = True
    gradients: bool = False
    edits: tuple[str, ...] = ()
    """Edits accepted here, by name; empty where only captures are."""
    note: str = ""
    """Why something is refused, and what to do instead."""
    layer_widths: tuple[LayerWidths, ...] = ()
    """Where not all layers have `widths`: what each has. Empty for sites that are alike in all."""

    def at(self, layer: int | None) -> tuple[int, ...]:
        """Widths of the site in one layer."""
        return next((one.widths for one in self.layer_widths if layer in one.layers), self.widths)


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """A weight that takes a variant's deltas: [d_in] to [d_out]."""

    name: str
    """w_q.3, w_gate.3, w_down.3, … one a layer; w_embed, w_unembed."""
    path: str
    """Of its module on this backend; several names may share one, as parts of what it gives."""
    d_in: int
    d_out: int
    bias: bool = False
    """Whether the weight has one; deltas may bring one in any case."""
    note: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class ModelInfo:
    """What `Describe` says of a loaded model; `print` shows it as a table.

    Sites are tried at load at one layer of each kind and, where there is time, at the last (`proof`): layers of a kind have the same modules and
    sizes, so they run the same code with other weights. What is not offered is in `refused`, with the reason; `batching`
    says why generations take turns, `tower`, `origin`, `quantization` and `placement` what is special about the weights.
    """

    id: str
    family: str
    """llama, gpt2, gemma, … or "unknown" (raw module sites only)."""
    architecture: str
    """`model_type` of the checkpoint's config."""
    backend: str
    device: str
    dtype: str
    attention: str
    """The attention kernel that plain requests use."""
    model_hash: str
    n_layers: int
    d_model: int
    n_heads: int
    """As are the sizes below, those of most layers that have any; 0 where none has. `SiteInfo.at` tells each layer's own."""
    n_kv_heads: int
    d_head: int
    d_mlp: int
    vocab_size: int
    n_experts: int = 0
    context_length: int = 0
    """Positions a request may use, prompt and new tokens together."""
    context_note: str = ""
    """Why there are fewer of them than the operator allows, where there are."""
    generate: bool = True
    generate_note: str = ""
    """Why generation is refused, when it is; else what is to be known of it, if anything is."""
    chat_template: bool = False
    n_slots: int = 0  # generations that run at once
    rules: tuple[str, ...] = ()  # of a backward pass, that gradients may ask for
    ends: tuple[EndToken, ...] = ()
    """What ends a generation (unless `ignore_eos`): all that the configs, the tokenizer and the chat template name."""
    sites: tuple[SiteInfo, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Library name → version."""
    tower: str = ""
    """The wrapper (mistral3, qwen2_vl, …) whose text model this is; empty for a text model. Images and sounds are not read."""
    proof: str = ""
    """What of the sites was tried on this model at load, where they were derived; empty for families that tests hold."""
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    """Site → why this model does not offer it; under `sweeps`, why it takes none of these."""
    batching: str = ""
    """Why generations go forward one after another; empty where they share a forward."""
    origin: str = ""
    """What its checkpoint was converted from: how that was stored, and its name; empty for one that loads as it is."""
    quantization: str = ""
    """How the weights are held in few bits, or that they were stored so; empty for plain ones."""

    placement: str = ""
    """Which layers are on which device, and which wait in main memory; empty where all are on one."""
    weights: tuple[WeightInfo, ...] = ()
    """That variants may change."""

    def site(self, name: str) -> SiteInfo | None:
        """The entry for a kind of site, or None when this model does not offer it."""
        return next((site for site in self.sites if site.name == name), None)

    def expand(self, site: str) -> tuple[Site, ...]:
        """Every concrete site that a name stands for; `q.*` of the layers that have one. Raises InvalidArgument."""
        pattern = SitePattern.parse(site)
        found, offered = pattern.expand(self.n_layers), self.site(pattern.name)
        if pattern.layers != (None, None) or offered is None or offered.layers is None:
            return found
        return tuple(one for one in found if one.layer in offered.layers)

    def __repr__(self) -> str:
        return _table(self)


def _table(info: ModelInfo) -> str:
    """Sizes and limits, then the sites: those that are alike in all stand in one row."""
    lines = [info.id or "model", *_labelled(_facts(info)), ""]
    if not info.sites:
        return "\n".join([*lines, "  no named sites: raw modules only, module:<path>:input|output"])
    every = tuple(dict.fromkeys(edit for site in info.sites for edit in site.edits))
    alike = [one for site in info.sites for one in _by_width(site)]
    cells = [_HEAD, *(_row(group, info.n_layers, every) for group in _groups(alike))]
    widths = [max(len(row[column]) for row in cells) for column in range(1, len(_HEAD) - 1)]
    for row in cells:
        names = textwrap.wrap(row[0], NAMES_WIDTH)
        rest = "  ".join(cell.ljust(width) for cell, width in zip(row[1:-1], widths, strict=True))
        lines.append(f"  {names[0]:<{NAMES_WIDTH}}  {rest}  {row[-1]}".rstrip())
        lines += [f"  {more}" for more in names[1:]]
    notes: dict[str, list[str]] = {}
    for site in info.sites:
        if site.note:
            notes.setdefault(site.note, []).append(site.name)
    told = [("all edits", ", ".join(every))] if every else []
    told += [("note", f"{', '.join(names)}: {note}") for note, names in notes.items()]
    whys: dict[str, list[str]] = {}
    for name, why in info.refused.items():
        whys.setdefault(why, []).append(name)
    told += [("not here", f"{', '.join(names)}: {why}") for why, names in whys.items()]
    layers = f"resid_post.0 … .{info.n_layers - 1}, .* (every one), .-1 (the last), .-2: (the last two)"
    raw = "read raw, module:<path>:input|output"
    told.append(("layers", layers) if any(site.layers for site in info.sites) else ("modules", raw))
    return "\n".join([*lines, "", *_labelled(told)])


def _facts(info: ModelInfo) -> list[tuple[str, str]]:
    experts = f" · {info.n_experts} experts" if info.n_experts else ""
    mlp = f" · d_mlp {info.d_mlp}" if info.d_mlp else ""
    kv = f" ({info.n_kv_heads} kv heads)" if info.n_kv_heads != info.n_heads else ""
    family = info.family if info.family == info.architecture else f"{info.family} ({info.architecture})"
    sizes = f"{family} · {info.n_layers} layers · d_model {info.d_model}"
    if info.n_heads:
        sizes += f" · {info.n_heads} heads of {info.d_head}{kv}"
    facts = [
        ("model", f"{sizes}{mlp}{experts} · vocabulary {info.vocab_size:,}"),
        ("runs on", f"{info.backend} · {info.device} · {info.dtype} · attention {info.attention}"),
    ]
    if info.tower:
        facts.append(
            ("tower", f"the text model of a {info.tower} checkpoint; what it sees or hears with is not loaded")
        )
    if info.quantization:
        facts.append(("weights", info.quantization))
    if info.placement:
        facts.append(("placed", info.placement))
    if info.context_length:
        facts.append(("context", f"{info.context_length:,} positions a request, prompt and new tokens together"))
    chat = "with a chat template" if info.chat_template else "no chat template"
    turns = " (in turns, each with forwards of its own)" if info.batching else ""
    slots = f"{info.n_slots} at once{turns}, " if info.n_slots else ""
    facts.append(("generate", f"{slots}{chat}" if info.generate else f"no: {info.generate_note}"))
    if info.generate and info.generate_note:
        facts.append(("noted", info.generate_note))
    if info.batching:
        facts.append(("in turns", f"because {info.batching}"))
    facts.append(("rules", f"{', '.join(info.rules)} (of gradients)" if info.rules else "none (gradients as they are)"))
    if info.proof:
        facts.append(("proof", info.proof))
    if info.origin:
        facts.append(("origin", f"converted from {info.origin}"))
    facts.append(("versions", " · ".join(f"{name} {version}" for name, version in info.versions.items())))
    return [*facts, ("hash", info.model_hash)]


def _labelled(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines with aligned labels, long ones wrapped under themselves."""
    lines: list[str] = []
    for label, value in rows:
        wrapped = textwrap.wrap(value, WIDTH - 12) or [""]
        lines.append(f"  {label:<9}  {wrapped[0]}".rstrip())
        lines += [f"  {'':<9}  {more}" for more in wrapped[1:]]
    return lines


def _by_width(site: SiteInfo) -> list[SiteInfo]:
    """One for each size that layers have there."""
    split = [replace(site, layers=one.layers, widths=one.widths, layer_widths=()) for one in site.layer_widths]
    return split or [site]


def _groups(sites: Sequence[SiteInfo]) -> list[list[SiteInfo]]:
    """Sites that are alike in all but their names, in the order of the first of each."""
    found: dict[object, list[SiteInfo]] = {}
    for site in sites:
        alike = (site.axes, site.widths, site.layers, site.run, site.generate, site.gradients, site.edits)
        found.setdefault(alike, []).append(site)
    return list(found.values())


def _row(group: Sequence[SiteInfo], n_layers: int, every: tuple[str, ...]) -> tuple[str, ...]:
    site = group[0]
    row_axis = 1 if site.name in ATTENTION_SITES else 0
    sizes = list(map(str, site.widths))
    sizes.insert(row_axis, "")  # widths are those of the other axes; 0 where the request decides
    named = [
        f"{axis} {size}" if size.strip("0") else axis for axis, size in zip_longest(site.axes, sizes, fillvalue="")
    ]
    axes = " × ".join(named)
    marks = ["✓" if yes else "–" for yes in (site.run, site.generate, site.gradients)]
    return (" ".join(s.name for s in group), _layers(site.layers, n_layers), axes, *marks, _edits(site.edits, every))


def _layers(layers: tuple[int, ...] | None, n_layers: int) -> str:
    """`*`, or ranges as a pattern has them: "0:4, 6, 8:12"."""
    if layers is None:
        return ""
    if layers == tuple(range(n_layers)):
        return "*"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}:{run[-1] + 1}" for run in runs)


def _edits(edits: tuple[str, ...], every: tuple[str, ...]) -> str:
    if not edits:
        return "none"
    missing = [edit for edit in every if edit not in edits]
    if not missing:
        return "all"
    return f"all but {', '.join(missing)}" if len(missing) <= 2 else ", ".join(edits)
