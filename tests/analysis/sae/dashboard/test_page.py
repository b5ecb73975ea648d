"""The page: what it carries, that it asks the network for nothing, and (in a browser, where there is one) how it acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.dashboard.data import BINS_PER_OCTAVE, DashboardData, Steered
from probewire.analysis.sae.dashboard.examples import ExampleStore
from probewire.analysis.sae.dashboard.page import dashboard_page
from probewire.analysis.sae.dashboard.tokens import TokenEffects, nearest
from probewire.analysis.sae.latents.statistics import LatentCounts
from probewire.analysis.sae.latents.stream import TextWindow
from tests.analysis.pages import Parsed, acted, asks_the_network_for_nothing, data_of, in_a_browser, is_javascript
from tests.analysis.sae.text_windows import random_windows, window

HOSTILE = ('</script><img src=x onerror="document.title=1">', "<!-- {{data}}", "&amp;{{script}}", "\u2028\n\t")


def made(windows: list[TextWindow], d_sae: int, **options: Any) -> DashboardData:
    counts = LatentCounts.empty(d_sae, blocks=1, bins_per_octave=BINS_PER_OCTAVE)
    examples = ExampleStore(d_sae, n_top=4, n_sampled=20)
    for item in windows:
        counts.add(item)
        examples.add(item)
    w_dec = np.random.default_rng(0).standard_normal((d_sae, 8)).astype(np.float32)
    near = nearest(w_dec, np.arange(d_sae), k=3)
    return DashboardData(
        {"SAE": "toy", "tokens": 1234}, ["A note."], np.arange(d_sae), counts, examples, near, **options
    )


def effects(d_sae: int) -> tuple[TokenEffects, dict[int, str]]:
    ids = np.arange(2 * d_sae).reshape(d_sae, 2)
    by = np.tile(np.array([[2.0, 1.0]], dtype=np.float32), (d_sae, 1))
    return TokenEffects(ids, by, ids[:, ::-1], -by), {i: f" w{i}" for i in range(2 * d_sae)}


def test_it_carries_what_was_found() -> None:
    windows = random_windows(30, 6, rate=0.1)
    found, words = effects(6)
    data = made(windows, 6, effects=found, effect_tokens=words)
    page = data_of(dashboard_page(data))
    assert page["ids"] == list(range(6))
    assert page["density"] == pytest.approx(data.counts.rate.tolist(), rel=1e-3)
    assert page["max"] == pytest.approx(data.counts.peak.tolist(), rel=1e-3)
    for latent in range(6):
        assert sum(page["histograms"][latent][1:]) == data.counts.n_fired[latent]
        for told, example in zip(page["top"][latent], data.examples.top(latent), strict=True):
            index, peak, value, quantile, *heat = told
            texts = [page["words"][word] for word in page["windows"][index]]
            assert texts == list(windows[example.window].tokens)
            assert (peak, quantile) == (example.peak, None)
            assert value == pytest.approx(example.value, rel=1e-2)
            warm = {
                int(position - peak): float(activation)
                for position, activation in zip(*(
                    part[windows[example.window].latent == latent]
                    for part in (windows[example.window].position, windows[example.window].value)
                ), strict=True)
            }  # fmt: skip
            assert dict(zip(heat[::2], heat[1::2], strict=True)) == pytest.approx(warm, rel=1e-2)
        assert [page["words"][i] for i in page["promoted"][latent][::2]] == [f" w{2 * latent}", f" w{2 * latent + 1}"]
        assert page["suppressed"][latent][1::2] == [-2, -1]
        assert latent not in page["near"][latent][::2]


def test_nothing_in_the_data_becomes_markup() -> None:
    hostile = window(HOSTILE, {1: {0: 1.0}, 2: {0: 2.0}, 3: {1: 1.0}})
    found, words = effects(2)
    steered = {0: [Steered(HOSTILE[0], 1.0, 2.0, HOSTILE[1])]}
    data = made([hostile], 2, effects=found, effect_tokens={**words, 0: HOSTILE[0]}, steered=steered)
    page = dashboard_page(data, title="<u>{{script}}")
    parsed = Parsed(page)
    assert len(parsed.scripts) == 2
    assert "img" not in parsed.tags
    assert "u" not in parsed.tags
    assert {*HOSTILE} <= {*data_of(page)["words"]}
    assert data_of(page)["steered"]["0"] == [[HOSTILE[0], 1, 2, HOSTILE[1]]]
    assert "&lt;u&gt;{{script}}</title>" in page


def test_it_asks_the_network_for_nothing() -> None:
    asks_the_network_for_nothing(dashboard_page(made(random_windows(3, 2), 2)))


def test_the_script_is_javascript(tmp_path: Path) -> None:
    is_javascript(dashboard_page(made(random_windows(3, 2), 2)), tmp_path)


def test_an_empty_token_table_and_dead_latents(tmp_path: Path) -> None:
    page = dashboard_page(made([window("ab", {})], 3), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    data = data_of(page)
    assert (data["fired"], data["histograms"], data["promoted"]) == ([0, 0, 0], [[], [], []], None)


ACT = r"""
window.addEventListener("load", () => {
  const out = {}, $ = (id) => document.getElementById(id), all = (query) => [...document.querySelectorAll(query)];
  const list = () => all("#rows .id").map((row) => +row.textContent);
  const set = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event(id === "find" ? "input" : "change")); };
  out.title = [document.title, $("title").textContent];
  out.about = $("about").textContent;
  out.rows = list().length;
  out.said = $("found").textContent;
  out.first = document.querySelector("h2").textContent;
  out.examples = all(".example").length;
  out.lit = all(".example .text span").filter((span) => span.style.background).length;
  out.images = all("img").length;
  out.text = document.querySelector(".example .text").textContent;
  out.tables = all("#card table").length;
  out.steered = all(".steered").map((row) => row.textContent);
  set("sort", "id-up"); out.byId = list();
  set("sort", "density-up"); out.byDensity = list();
  $("dead").checked = true; $("dead").dispatchEvent(new Event("change")); out.withDead = list().length;
  set("sort", "id-up");
  set("find", "3"); out.number = [list(), document.querySelector("h2").textContent];
  set("find", "#3"); out.only = list();
  set("find", "w5"); out.word = list();
  set("find", "nothing like it"); out.none = [list(), $("found").textContent];
  set("find", "");
  $("list").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" })); out.stepped = document.querySelector("h2").textContent;
  const near = document.querySelector("tr.link"), wanted = near.textContent.split(" ")[0];
  near.click(); out.near = [wanted, document.querySelector("h2").textContent];
  out.hash = location.hash;
  const pre = document.createElement("pre"); pre.id = "out"; pre.textContent = JSON.stringify(out);
  document.body.appendChild(pre);
});
"""


@in_a_browser
def test_in_a_browser(tmp_path: Path) -> None:
    windows = [
        window("abcdef", {1: {0: 1.0, 1: 3.0}, 2: {0: 2.0}, 4: {3: 1.0}}),
        window("xyz", {1: {0: 0.5}, 2: {4: 0.1}}),
    ]
    found, words = effects(6)
    steered = {0: [Steered("Once", 0.0, 0.0, " upon"), Steered("Once", 2.0, 4.0, " <b>x</b>")]}
    data = made(windows, 6, effects=found, effect_tokens=words, steered=steered)
    seen = acted(dashboard_page(data, title="Some <latents>"), ACT, tmp_path)
    assert seen["title"] == ["Some <latents>", "Some <latents>"]
    assert seen["about"] == "SAE toy · tokens 1,234"
    assert seen["rows"] == 4
    assert seen["said"] == "4 of 6 latents; 2 never fire"
    assert seen["first"] == "Latent 0"
    assert seen["examples"] == 2
    assert seen["lit"] == 3
    assert seen["text"] == "abcdef"
    assert seen["tables"] == 3
    assert seen["steered"] == ["0Once upon", "+2 × strong (4.00)Once <b>x</b>"]
    assert seen["byId"] == [0, 1, 3, 4]
    assert seen["byDensity"] == [1, 3, 4, 0]
    assert seen["withDead"] == 6
    assert seen["number"] == [[3, 1], "Latent 3"], (
        "a latent's number comes before tokens that hold it (w3, of latent 1)"
    )
    assert seen["only"] == [3]
    assert seen["word"] == [2], "w5 is promoted by latent 2"
    assert seen["none"] == [[], "0 of 6 latents; 2 never fire"]
    assert seen["stepped"] == "Latent 3"
    assert seen["near"][1] == f"Latent {seen['near'][0]}"
    assert "sort=id-up" in seen["hash"]


@in_a_browser
def test_hostile_tokens_in_a_browser(tmp_path: Path) -> None:
    found, words = effects(6)
    hostile = window(HOSTILE, {1: {0: 1.0, 3: 1.0}, 2: {0: 2.0}, 3: {1: 1.0, 2: 1.0, 4: 1.0, 5: 1.0}})
    data = made([hostile], 6, effects=found, effect_tokens={**words, 0: HOSTILE[0], 1: HOSTILE[1]})
    seen = acted(dashboard_page(data), ACT, tmp_path)
    assert seen["images"] == 0
    assert seen["title"][0] == "Latents of toy"
    assert seen["text"] == f"{HOSTILE[0]}{HOSTILE[1]}{HOSTILE[2]}\u2028⏎⇥"
