"""Latents as a notebook sees them: sparse rows, hooks in short, and which SAE travels how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_service import FakeService

from probewire.clients import Client, Hook, InvalidArgument, NotFound, capture, edit_latents, reconstruct
from probewire.clients.results.captures import Captures
from probewire.clients.results.latents import LatentRows
from probewire.protos.latents import LatentChange, Latents, ReadLatents
from probewire.protos.spec import Capture
from probewire.protos.wire.assemble import AssembledCapture, CaptureKey
from tests.saes import write_sae

IDS = np.array([[4, 1], [2, -1]], np.int32)
VALUES = np.array([[3.0, 2.0], [1.5, 0.0]], np.float32)
COUNTS = np.array([2, 1], np.int32)


def rows(**more: Any) -> LatentRows:
    return LatentRows((0, 3), IDS, VALUES, more.pop("counts", COUNTS), **more)


def test_dense() -> None:
    expected = np.zeros((2, 6), np.float32)
    expected[0, 4], expected[0, 1], expected[1, 2] = 3.0, 2.0, 1.5
    np.testing.assert_array_equal(rows().dense(6), expected)
    with pytest.raises(InvalidArgument, match="too small for latent 4"):
        rows().dense(4)


def test_latents_that_were_left_out_are_no_zeros() -> None:
    cut = rows(counts=np.array([3, 1], np.int32))
    assert not cut.complete
    with pytest.raises(InvalidArgument, match="up to 3 latents fire in a row and 2 of each were read"):
        cut.dense(6)


def test_attributions() -> None:
    found = rows(gradients_or_none=VALUES * 2, error_or_none=COUNTS, bias_or_none=COUNTS)
    np.testing.assert_array_equal(found.attributions, VALUES**2 * 2)
    for part in ("gradients", "attributions", "error_attribution", "bias_attribution"):
        with pytest.raises(NotFound, match="no gradients were read"):
            getattr(rows(), part)


def test_captures_find_their_parts() -> None:
    def entry(part: str, array: Any, hook: int = 0) -> AssembledCapture:
        return AssembledCapture(CaptureKey("input", hook, "resid_post.1", part), f"hook{hook}", (0, 3), array.copy())

    parts = [entry("value", VALUES), entry("index", IDS), entry("count", COUNTS)]
    found = Captures(parts).latents("resid_post.1")
    assert (found.positions, found.complete) == ((0, 3), True)
    np.testing.assert_array_equal(found.ids, IDS)
    with pytest.raises(NotFound, match=r"holds no sparse latents: .* an array, \['resid_post.1'\]"):
        Captures(parts[:2]).latents("resid_post.1")
    with pytest.raises(InvalidArgument, match=r"sparse latents; write .latents\('resid_post.1'\)"):
        Captures(parts)["resid_post.1"]
    two = Captures([*parts, *(entry(part, array, 1) for part, array in (("value", VALUES), ("count", COUNTS)))])
    with pytest.raises(InvalidArgument, match=r"choose one: .*\.hook\(0\)\.latents\('resid_post.1'\)"):
        two["resid_post.1"]
    both = Captures([*parts, *(entry(part, array, 1) for part, array in (("value", VALUES), ("index", IDS)))])
    with pytest.raises(InvalidArgument, match="choose one"):
        both.latents("resid_post.1")


def test_a_change_that_is_none_is_named() -> None:
    with pytest.raises(InvalidArgument, match=r"latent 9: .*ad"):
        edit_latents("resid_post.1", "a", {3: 1.0, 9: {"ad": 1.0}})
    with pytest.raises(InvalidArgument, match=r"^latents.changes: latent 9 needs exactly one"):
        edit_latents("resid_post.1", "a", {9: {"set": 1.0, "add": 1.0}})


def test_hooks_in_short() -> None:
    hook = edit_latents("resid_post.1", "a", {3: 2, 5: {"scale": 0.5, "active": True}}, positions=-1)
    changes = (LatentChange(3, set=2.0), LatentChange(5, scale=0.5, active=True))
    assert (hook.edit, hook.where.positions) == (Latents("a", changes), (-1,))
    assert reconstruct("resid_post.1", "a").edit == Latents("a", (), error=False)
    assert capture("z.1", latents="a", top_k=4) == Hook("z.1", capture=Capture(reduce=ReadLatents("a", top_k=4)))
    assert capture("z.1", latents="a", latent_ids=[1, 2]).capture == Capture(reduce=ReadLatents("a", ids=(1, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: capture("z.1", top_k=4), "top_k and latent_ids are of an SAE"),
        (lambda: capture("z.1", latents="a", reduce="mean"), "reduce or latents, not both"),
        (lambda: capture("z.1", latents="a", top_k=1, latent_ids=[1]), "top_k or ids, not both"),
        (lambda: capture("z.1", latents="a", top_k=0), "top_k must be in 1"),
        (lambda: capture("z.1", latents="a", latent_ids=range(4097)), "names 4,097; at most 4,096"),
        (lambda: capture("z.1", latents=""), "must be the name of a loaded SAE"),
        (lambda: edit_latents("z.1", "a", {}), "changes nothing"),
        (lambda: edit_latents("z.1", "a", {-1: 1.0}), "an integer of 0 or more"),
        (lambda: edit_latents("z.1", "a", {1: {"set": 1.0, "add": 1.0}}), "exactly one of set, add and scale"),
        (lambda: edit_latents("z.1", "a", {1: {}}), "got none"),
        (lambda: edit_latents("z.1", "a", {1: {"min": 2.0, "max": 1.0}}), "min 2.0 is above max 1.0"),
        (lambda: edit_latents("z.1", "a", {1: float("nan")}), "finite number"),
        (lambda: edit_latents("z.1", "a", {1: {"sett": 1.0}}), "unknown fields"),
    ],
)
def test_bad_hooks(make: Any, message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        make()
    assert message in refused.value.message


def test_which_sae_travels_how(tmp_path: Path) -> None:
    """A folder of this machine by its path to a server that is here, and with its files to any other."""
    folder, service = write_sae(tmp_path / "mine"), FakeService()
    client = Client.inprocess(service)
    assert client.load_sae(folder, site="resid_post.2", shared=True).name == "sae"
    assert client.load_sae(folder, name="sent", upload=True).name == "sent"
    client.load_sae("owner/repo/layer_3", name="hub")
    here, sent, hub = service.sae_requests
    assert (here.source, here.files, here.site, here.shared) == (str(folder), None, "resid_post.2", True)
    assert (sent.source, sent.name) == ("", "sent")
    assert sent.files is not None
    assert sent.files.weights == (folder / "sae_weights.safetensors").read_bytes()
    assert hub.source == "owner/repo/layer_3"
    assert [item.name for item in client.saes()] == ["sae", "sent", "hub"]
    client.unload_sae("hub")
    with pytest.raises(InvalidArgument, match=r"no cfg\.json"):
        client.load_sae(tmp_path, upload=True)


def test_a_server_elsewhere_is_sent_the_files(tmp_path: Path) -> None:
    assert not Client("grpc://example.org:50051")._transport.is_here
    assert Client("http://127.0.0.1:8000")._transport.is_here
