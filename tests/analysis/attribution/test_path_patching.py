"""Path patching: against a brute force that holds every other output still, and exact in a linear model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.analysis.attribution.path_patching import End, path_patching
from probewire.clients import Client, InvalidArgument, LogitDifference, patch as patch_hook

CLEAN, CORRUPT = "abcdefgh", "abxdefyh"
METRIC = LogitDifference((65, 70), (80,))
BRANCHES = [f"{kind}.{layer}" for layer in range(3) for kind in ("attn_out", "mlp_out")]


def measured(client: Client, hooks: list[Any]) -> float:
    run = client.run({"clean": CLEAN, "corrupt": CORRUPT}, hooks=hooks, capture="logits")
    row = run.inputs["clean"]["logits"][-1].astype(np.float64)
    return float((row[65] + row[70]) / 2 - row[80])


def brute_force(client: Client, sender: End, receiver: str, read: str | None = None, head: int | None = None) -> float:
    """Freeze every output between the two at clean values, see what the receiver reads, and run with that alone."""
    site, own_head = (sender, None) if isinstance(sender, str) else sender
    plain = client.run(CLEAN, capture=[*BRANCHES])
    sent = patch_hook(site, from_input="corrupt", inputs="clean", heads=None if own_head is None else [own_head])
    output = site.replace("z", "attn_out")
    between = BRANCHES[BRANCHES.index(output) + 1 :] if output in BRANCHES else BRANCHES
    frozen = [patch_hook(one, value=plain[one], inputs="clean") for one in between]
    read = read or receiver
    hidden = client.run({"clean": CLEAN, "corrupt": CORRUPT}, hooks=[sent, *frozen], capture=read).inputs["clean"][read]
    if head is None:
        return measured(client, [patch_hook(read, value=hidden, inputs="clean")])
    inner = client.run(CLEAN, hooks=[patch_hook(read, value=hidden)], capture=receiver)[receiver]
    return measured(client, [patch_hook(receiver, value=inner[:, [head]], heads=[head], inputs="clean")])


@pytest.mark.parametrize("sender", ["embed", "attn_out.0", "mlp_out.0", ("z.0", 1)])
@pytest.mark.parametrize("receiver", ["attn_resid.1", "mlp_resid.2", "resid_post.2"])
def test_a_path_is_what_brute_force_finds(tiny: Client, sender: End, receiver: str) -> None:
    named = "logits" if receiver == "resid_post.2" else receiver
    found = path_patching(tiny, CLEAN, CORRUPT, [sender], [named], METRIC)
    assert found.per_pair.item() == pytest.approx(brute_force(tiny, sender, receiver), abs=1e-9)
    assert found.base.item() == pytest.approx(measured(tiny, []), abs=1e-10)


@pytest.mark.parametrize(("receiver", "head"), [("q.1", 3), ("k.2", 0), ("v.2", 1)])
def test_the_query_key_or_value_of_one_head_receives(tiny: Client, receiver: str, head: int) -> None:
    found = path_patching(tiny, CLEAN, CORRUPT, ["mlp_out.0"], [(receiver, head)], METRIC)
    expected = brute_force(tiny, "mlp_out.0", receiver, f"attn_resid.{receiver[-1]}", head)
    assert found.per_pair.item() == pytest.approx(expected, abs=1e-9)
    assert abs(found.effect.item()) > 1e-6


def test_a_grid_of_paths(tiny: Client) -> None:
    senders, receivers = ["embed", ("z.1", 2), "mlp_out.2"], ["attn_resid.1", "mlp_resid.1", "logits"]
    found = path_patching(tiny, CLEAN, CORRUPT, senders, receivers, METRIC)
    assert found.effect.axes["sender"] == ("embed", "z.1 head 2", "mlp_out.2")
    for s, sender in enumerate(senders):
        for r, receiver in enumerate(receivers):
            alone = path_patching(tiny, CLEAN, CORRUPT, [sender], [receiver], METRIC)
            assert found.effect.values[s, r] == pytest.approx(alone.effect.item(), abs=1e-10)
    assert found.effect.sel(sender="mlp_out.2", receiver="attn_resid.1").item() == pytest.approx(0.0, abs=1e-12)
    assert found.effect.sel(sender="z.1 head 2", receiver="attn_resid.1").item() == pytest.approx(0.0, abs=1e-12)


def test_positions_narrow_what_is_sent_and_taken(tiny: Client) -> None:
    options = {"receivers": ["attn_resid.2"], "metric": METRIC}
    whole = path_patching(tiny, CLEAN, CORRUPT, ["mlp_out.0"], **options).effect.item()
    unchanged = path_patching(tiny, CLEAN, CORRUPT, ["mlp_out.0"], positions=[0, 1, 2], **options).effect.item()
    changed = path_patching(tiny, CLEAN, CORRUPT, ["mlp_out.0"], positions=range(3, 9), **options).effect.item()
    last = path_patching(tiny, CLEAN, CORRUPT, ["mlp_out.0"], receiver_positions=[-1], **options).effect.item()
    assert unchanged == pytest.approx(0.0, abs=1e-10)
    assert changed == pytest.approx(whole, abs=1e-10)
    assert abs(last - whole) > 1e-6


def test_receivers_together_see_each_other(tiny: Client) -> None:
    """The first receiver's new output reaches the logits, but not the second receiver, whose input is set."""
    found = path_patching(tiny, CLEAN, CORRUPT, ["embed"], ["attn_resid.0", "mlp_resid.1"], METRIC, together=True)
    run = tiny.run({"clean": CLEAN, "corrupt": CORRUPT}, capture=["embed", "attn_resid.0", "mlp_resid.1"])
    change = run.inputs["corrupt"]["embed"] - run.inputs["clean"]["embed"]
    hooks = [
        patch_hook(site, value=run.inputs["clean"][site] + change, inputs="clean")
        for site in ("attn_resid.0", "mlp_resid.1")
    ]
    assert found.per_pair.dims == ("pair", "sender")
    assert found.per_pair.item() == pytest.approx(measured(tiny, hooks), abs=1e-10)


def test_bad_input(tiny: Client) -> None:
    cases: list[tuple[Any, Any, str]] = [
        ("resid_pre.1", "logits", "no sender; senders are embed"),
        ("z.1", "logits", "need a head"),
        (("mlp_out.1", 2), "logits", "need a head"),
        (("z.1", 4), "logits", "heads 0 … 3"),
        ("mlp_out.3", "logits", "layers 0 … 2"),
        ("mlp_out.1", "mlp_out.2", "no receiver; receivers are attn_resid"),
    ]
    for sender, receiver, match in cases:
        with pytest.raises(InvalidArgument, match=match):
            path_patching(tiny, CLEAN, CORRUPT, [sender], [receiver], METRIC)
    with pytest.raises(InvalidArgument, match="at least one sender"):
        path_patching(tiny, CLEAN, CORRUPT, [], ["logits"], METRIC)
