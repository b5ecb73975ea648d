"""Running circuits: the hooks, the same numbers by hand, and what cannot be run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.analysis.circuits.ablated import ablated, ablation_hooks
from probewire.analysis.circuits.space import Space, head_space, make_space, neuron_space
from probewire.clients import Client, InvalidArgument, LogitDifference, Zeros, hook, patch as patch_hook
from probewire.protos.edits import Inline, Replace
from probewire.protos.spec import MAX_HOOKS

CLEAN, CORRUPT = "abcdefgh", "abxdefyh"
METRIC = LogitDifference((65, 70), (80,))


def by_hand(client: Client, space: Space, mask: Any, value: Any, part: str) -> float:
    """One hook for every unit that is out; `value(site, position, index)` is what stands there."""
    hooks: list[Any] = []
    for index in np.flatnonzero(~np.asarray(mask)).tolist():
        unit = space.unit_at(index)
        at = {} if unit.position is None else {"positions": unit.position}
        which = {} if part == "" else {part + "s": (getattr(unit, part),)}
        hooks.append(value(unit.site, at, which))
    run = client.run({"clean 0": CLEAN, "corrupt 0": CORRUPT}, hooks=hooks, capture="logits")
    row = run.inputs["clean 0"]["logits"][-1]
    return float((row[65] + row[70]) / 2 - row[80])


def corrupt_value(site: str, at: Any, which: Any) -> Any:
    return patch_hook(site, from_input="corrupt 0", inputs="clean 0", **which, **at)


def random_mask(space: Space, share: float = 0.5, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random(space.shape) < share


@pytest.mark.parametrize("n_tokens", [None, 9])
def test_heads_outside_are_patched(tiny: Client, n_tokens: int | None) -> None:
    space = head_space(tiny.describe(), n_tokens)
    model = ablated(tiny, CLEAN, CORRUPT, METRIC, space)
    masks = [random_mask(space, 0.5, seed) for seed in range(3)]
    expected = [by_hand(tiny, space, mask, corrupt_value, "head") for mask in masks]
    assert model.means(masks) == pytest.approx(expected, abs=1e-9)


def test_neurons_outside_are_patched(tiny: Client) -> None:
    space = make_space(tiny.describe(), ["mlp_act.0", "mlp_act.2"], n_tokens=9, part="unit")
    mask = random_mask(space, 0.95)
    model = ablated(tiny, CLEAN, CORRUPT, METRIC, space)
    assert model.values([mask]).item() == pytest.approx(by_hand(tiny, space, mask, corrupt_value, "unit"), abs=1e-9)


def test_sites_outside_are_zeroed(tiny: Client) -> None:
    space = make_space(tiny.describe(), ["attn_out", "mlp_out"], n_tokens=9)
    mask = random_mask(space, 0.8)
    model = ablated(tiny, CLEAN, CORRUPT, METRIC, space, ablation="zero")

    def zero(site: str, at: Any, which: Any) -> Any:
        return hook(site, Replace(Zeros(), **which), inputs="clean 0", **at)

    assert model.values([mask]).item() == pytest.approx(by_hand(tiny, space, mask, zero, ""), abs=1e-9)


@pytest.mark.parametrize(("kind", "part", "n_tokens"), [("z", "head", None), ("z", "head", 9), ("mlp_act", "unit", 9)])
def test_units_outside_have_means(tiny32: Client, kind: str, part: str, n_tokens: int | None) -> None:
    space = make_space(tiny32.describe(), kind, n_tokens=n_tokens, part=part)
    mask, reference = random_mask(space, 0.97 if part == "unit" else 0.5), ["qwertyui", "zxcvbnml", "asdfghjk"]
    model = ablated(tiny32, CLEAN, CORRUPT, METRIC, space, ablation="mean", reference=reference)
    runs = tiny32.run(reference, capture=[f"{kind}.*"]).inputs.values()

    def mean(site: str, at: Any, which: Any) -> Any:
        rows = np.stack([np.asarray(run[site], dtype=np.float64) for run in runs])
        found = rows.mean(axis=0) if n_tokens else np.broadcast_to(rows.mean(axis=(0, 1)), rows.shape[1:])
        [index] = which[f"{part}s"]
        chosen = found[[at["positions"]]] if at else found
        value = chosen[:, [index]].astype(np.float32)
        return hook(site, Replace(Inline(value), **which), inputs="clean 0", **at)

    assert model.values([mask]).item() == pytest.approx(by_hand(tiny32, space, mask, mean, part), abs=1e-4)


def test_the_ends(tiny: Client) -> None:
    space = neuron_space(tiny.describe(), 9)
    model = ablated(tiny, CLEAN, CORRUPT, METRIC, space)
    run = tiny.run(CLEAN, capture="logits")["logits"][-1]
    assert model.full == pytest.approx(float((run[65] + run[70]) / 2 - run[80]), abs=1e-10)
    whole = [patch_hook("mlp_act.*", from_input="corrupt 0", inputs="clean 0")]
    row = tiny.run({"clean 0": CLEAN, "corrupt 0": CORRUPT}, hooks=whole, capture="logits").inputs["clean 0"]["logits"][
        -1
    ]
    assert model.empty == pytest.approx(float((row[65] + row[70]) / 2 - row[80]), abs=1e-10)


def test_several_pairs(tiny: Client) -> None:
    space = head_space(tiny.describe())
    clean, corrupt = [CLEAN, "hgfedcba"], [CORRUPT, "hgfxdcba"]
    masks = [random_mask(space, 0.5, seed) for seed in range(2)]
    both = ablated(tiny, clean, corrupt, METRIC, space).values(masks)
    assert both.shape == (2, 2)
    for column in range(2):
        alone = ablated(tiny, clean[column], corrupt[column], METRIC, space).means(masks)
        assert both[:, column] == pytest.approx(alone, abs=1e-10)


def test_few_hooks_where_much_is_the_same(tiny: Client) -> None:
    space = neuron_space(tiny.describe(), 9)
    none = np.zeros(space.shape, dtype=bool)
    assert [h.site for h in ablation_hooks(space, none, Zeros())] == ["mlp_act.0:3"]
    assert ablation_hooks(space, ~none, Zeros()) == []
    some = none.copy()
    some[1, 4, 7] = True
    hooks = ablation_hooks(space, some, Zeros())
    assert {(h.site, h.where.positions) for h in hooks} == {
        ("mlp_act.0", None),
        ("mlp_act.2", None),
        ("mlp_act.1", (0, 1, 2, 3, 5, 6, 7, 8)),
        ("mlp_act.1", (4,)),
    }
    [narrow] = [h for h in hooks if h.where.positions == (4,)]
    assert isinstance(narrow.edit, Replace)
    assert narrow.edit.units == tuple(i for i in range(96) if i != 7)


def test_what_cannot_be_run(tiny: Client) -> None:
    info = tiny.describe()
    with pytest.raises(InvalidArgument, match="units at 8 positions, and a prompt has 9 tokens"):
        ablated(tiny, CLEAN, CORRUPT, METRIC, neuron_space(info, 8))
    with pytest.raises(InvalidArgument, match="'resample'; allowed: patch, mean, zero"):
        ablated(tiny, CLEAN, CORRUPT, METRIC, neuron_space(info), ablation="resample")
    with pytest.raises(InvalidArgument, match="a reference is for mean ablation"):
        ablated(tiny, CLEAN, CORRUPT, METRIC, neuron_space(info), reference=["abc"])
    long = Space(("mlp_act.0",), MAX_HOOKS + 1, "unit", 2048)
    mask = np.tri(MAX_HOOKS + 1, 2048, dtype=bool)[None]
    with pytest.raises(InvalidArgument, match=f"needs {MAX_HOOKS + 1} hooks .* takes {MAX_HOOKS}"):
        ablation_hooks(long, mask, Zeros())
