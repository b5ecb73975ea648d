"""An SAE by folder and by name, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from probewire.analysis.sae.model.on_server import opened
from probewire.clients import Client, FailedPrecondition, InvalidArgument, NotFound
from tests.analysis.sae.conftest import SITE


def test_a_folder_is_loaded_for_the_while(client: Client, save_sae: Callable[..., Path]) -> None:
    folder = save_sae("standard", 64, 32)
    with opened(client, folder) as (info, loaded):
        assert (info.site, info.d_sae, loaded.d_sae) == (SITE, 32, 32)
        assert [item.name for item in client.saes()] == [info.name]
    with pytest.raises(ZeroDivisionError), opened(client, folder):
        raise ZeroDivisionError
    assert client.saes() == []
    with pytest.warns(UserWarning, match="was trained at"), opened(client, folder, site="resid_post.0") as (info, _):
        assert info.site == "resid_post.0"
    with pytest.raises(UserWarning, match="was trained at"), opened(client, folder, site="resid_post.0"):
        pass  # a warning that is an error, as here, leaves nothing behind
    assert client.saes() == []


def test_a_loaded_one_stays(client: Client, save_sae: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_sae("standard", 64, 32)
    client.load_sae(folder, name="mine")
    with opened(client, "mine") as (info, loaded):
        assert (info.name, loaded.folder) == ("mine", folder)
    with pytest.raises(InvalidArgument, match="or as folder="), opened(client, "mine", folder=tmp_path):
        pass
    for other in (save_sae("standard", 64, 40, seed=1), save_sae("standard", 64, 32, seed=2)):
        with pytest.raises(FailedPrecondition, match="give the folder"), opened(client, "mine", folder=other):
            pass
    assert [item.name for item in client.saes()] == ["mine"]
    client.unload_sae("mine")


def test_one_that_was_sent_along_needs_its_folder(client: Client, save_sae: Callable[..., Path]) -> None:
    folder = save_sae("standard", 64, 32, seed=3)
    client.load_sae(folder, name="sent", upload=True)
    with (
        pytest.raises(InvalidArgument, match="'sent along' on this machine; give their folder"),
        opened(client, "sent"),
    ):
        pass
    with opened(client, "sent", folder=folder) as (info, loaded):
        assert (info.name, loaded.folder) == ("sent", folder)
    client.unload_sae("sent")


def test_neither(client: Client, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no loaded SAE"), opened(client, "nobody"):
        pass
    with pytest.raises(InvalidArgument, match=r"cfg\.json"), opened(client, tmp_path):
        pass
