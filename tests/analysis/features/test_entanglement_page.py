"""The page and the figures of entangled units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.features import Entanglement, entangled_units, entanglement_page
from probewire.analysis.features.entanglement_figures import causal_figure, entanglement_figure
from probewire.protos.errors import InvalidArgument
from tests.analysis.features.test_entanglement import NAMES, TWO_IDEAS, planted
from tests.analysis.pages import acted, asks_the_network_for_nothing, data_of, in_a_browser, is_javascript


@pytest.fixture(scope="module")
def found() -> Entanglement:
    checked = entangled_units(planted(), replicates=20, permuted=1)
    return replace(checked, losses={TWO_IDEAS: {"a": 3.1, "b": 2.5, "c": -0.4, "d": 0.1}})


def test_the_page_holds_what_was_found(found: Entanglement, tmp_path: Path) -> None:
    page = entanglement_page(found, tmp_path / "units.html")
    assert (tmp_path / "units.html").read_text(encoding="utf-8") == page
    asks_the_network_for_nothing(page)
    is_javascript(page, tmp_path)
    data = data_of(page)
    assert data["domains"] == list(NAMES)
    [first, *others] = data["units"]
    assert (first["unit"], first["kind"]) == (TWO_IDEAS, "entangled")
    assert first["losses"] == [3.1, 2.5, -0.4, 0.1]
    assert first["rates"] == pytest.approx(found.profile.rates[TWO_IDEAS].tolist())
    assert [len(some) > 0 for some in first["contexts"]] == [True, True, True, False]
    assert {one["unit"] for one in others} == {*found.broad} - {TWO_IDEAS}
    assert data["counts"]["about something else in two domains"] == len(found.entangled)
    assert not any(one["contexts"][0] for one in data_of(entanglement_page(found, texts=False))["units"])


@in_a_browser
def test_the_page_in_a_browser(found: Entanglement, tmp_path: Path) -> None:
    script = """
      const all = document.querySelectorAll("#map .row").length;
      const select = document.getElementById("kind");
      select.value = "entangled"; select.dispatchEvent(new Event("change"));
      document.querySelector("#map .row").dispatchEvent(new MouseEvent("click", { bubbles: true }));
      const out = document.createElement("pre"); out.id = "out";
      out.textContent = JSON.stringify({ all, kept: document.querySelectorAll("#map .row").length,
        card: document.getElementById("card").innerText, marked: document.querySelectorAll("mark").length });
      document.body.append(out);
    """
    seen = acted(entanglement_page(found), script, tmp_path)
    assert seen["all"] == len(found.broad)
    assert seen["kept"] == len(found.entangled_without_words)
    assert f"#{TWO_IDEAS}: entangled" in seen["card"]
    assert "It has a part in 2 domains." in seen["card"]
    assert seen["marked"] == sum(len(texts) for texts in found.contexts[TWO_IDEAS].values())


def test_the_figures(found: Entanglement, tmp_path: Path) -> None:
    drawn = entanglement_figure(found, tmp_path / "units.png")
    assert (tmp_path / "units.png").read_bytes().startswith(b"\x89PNG")
    assert [text.get_text() for text in drawn.axes[0].get_xticklabels()] == list(NAMES)
    losses = causal_figure(found, tmp_path / "losses.png")
    assert [text.get_text() for text in losses.axes[0].get_yticklabels()] == [f"#{TWO_IDEAS}"]
    assert sorted(
        float(np.asarray(line.get_xdata())[0]) for line in losses.axes[0].lines if line.get_marker() == "o"
    ) == [
        -0.4,
        0.1,
        2.5,
        3.1,
    ]
    with pytest.raises(InvalidArgument, match="causal_check"):
        causal_figure(replace(found, losses={}))
