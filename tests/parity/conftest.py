"""Models that the files of this folder share."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from probewire.backends.hooks.edits import Edits
from probewire.protos.edits import Scale
from tests.parity.opened import Opened


@pytest.fixture(scope="package")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Generator[Opened]:
    """`opened(family, backend, dtype="float64")`: a client of a tiny model."""
    made = Opened(tmp_path_factory.mktemp("opened"))
    yield made
    made.close()


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Scale:
    """An edit that fails within the forward: all that can be known before is refused before."""
    edit, real = Scale(-0.123), Edits.apply

    def apply(self: Edits, bound: Any, *args: Any) -> Any:
        if bound.hook.edit == edit:
            raise ValueError("planted fault")
        return real(self, bound, *args)

    monkeypatch.setattr(Edits, "apply", apply)
    return edit
