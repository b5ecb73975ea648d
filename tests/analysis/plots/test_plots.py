"""Every figure: what stands in it is what was given, and what cannot be drawn is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from probewire.analysis.plots import (
    attention,
    faithfulness_curves,
    head_grid,
    heat_map,
    layer_curves,
    lens_table,
    score_bars,
)
from probewire.analysis.plots.style import STYLE, limits, readable
from probewire.clients import InvalidArgument, NamedArray

RNG = np.random.default_rng(0)
GRID = RNG.normal(size=(6, 4))
TOKENS = ("When", " Mary", "\n", " $a$")


def axes(figure: Any, number: int = 0) -> Any:
    return figure.axes[number]  # matplotlib is annotated in part


def image(figure: Any) -> Any:
    return figure.axes[0].images[0]


def labels(figure: Any, axis: str) -> list[str]:
    return [label.get_text() for label in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


def colours(figure: Any) -> Any:
    return image(figure).cmap(image(figure).norm(image(figure).get_array()))


def test_a_heat_map_shows_its_values_under_their_tokens(tmp_path: Path) -> None:
    figure = heat_map(GRID, TOKENS, what="Effects", how="patching", label="effect", path=tmp_path / "map.png")
    assert np.array_equal(image(figure).get_array(), GRID)
    assert image(figure).origin == "lower", "layer 0 is at the bottom"
    assert labels(figure, "x") == ["When", "·Mary", "⏎", r"·\$a\$"]
    assert labels(figure, "y") == ["0", "1", "2", "3", "4", "5"]
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_signed_values_diverge_about_zero() -> None:
    figure = heat_map(GRID)
    norm = image(figure).norm
    assert (norm.vmin, norm.vmax) == (-np.abs(GRID).max(), np.abs(GRID).max())
    white = image(figure).cmap(norm(0.0))
    assert min(white[:3]) > 0.95
    assert image(heat_map(np.abs(GRID))).norm.vmin == 0.0


def test_what_lies_beyond_the_limit_is_pointed_at() -> None:
    figure = heat_map(GRID, limit=0.5)
    assert axes(figure, 1)._colorbar.extend == "both"
    assert axes(heat_map(GRID), 1)._colorbar.extend == "neither"


def test_a_named_array_brings_its_axes() -> None:
    named = NamedArray(GRID.T, {"position": range(4), "layer": range(3, 9)})
    figure = heat_map(named, TOKENS)
    assert np.array_equal(image(figure).get_array(), GRID)
    assert labels(figure, "y") == ["3", "4", "5", "6", "7", "8"]


def test_nan_is_left_blank() -> None:
    grid = GRID.copy()
    grid[2, 1] = np.nan
    assert colours(heat_map(grid))[2, 1, 3] == 0.0


def test_a_head_grid_writes_out_the_strongest() -> None:
    figure = head_grid(GRID, top=2)
    texts = {text.get_text(): text.get_position() for text in axes(figure).texts}
    strongest = np.argsort(-np.abs(GRID), axis=None)[:2]
    expected = {}
    for flat in strongest:
        layer, head = np.unravel_index(flat, GRID.shape)
        expected[f"{GRID[layer, head]:.2g}"] = (head, layer)
    assert texts == expected


def test_a_lens_table_has_each_word_in_its_cell() -> None:
    words = np.array([["a", " b"], ["\n", ""]], dtype=object)
    figure = lens_table(words, [[0.1, 0.9], [0.5, 0.0]], ("x", "y"), following=("y", "z"))
    cells = {text.get_position(): text.get_text() for text in axes(figure).texts}
    assert cells == {(0, 0): "a", (1, 0): "·b", (0, 1): "⏎", (1, 1): "∅"}
    assert labels(figure, "x") == ["x→y", "y→z"]
    shades = {text.get_text(): text.get_color() for text in axes(figure).texts}
    assert shades["a"] == "white"  # on dark
    assert shades["·b"] != "white"  # on bright


def test_faithfulness_of_a_perfect_and_an_empty_circuit() -> None:
    """Areas over linear fractions .001 … 1: of 1 it is .999, of 0 it is 0; a triangle from 0 to 1 has half of it."""
    fractions = (0.001, 0.01, 0.1, 1.0)
    curves = {"perfect": np.ones(4), "empty": np.zeros(4), "linear": (np.array(fractions) - 0.001) / 0.999}
    figure = faithfulness_curves(fractions, curves)
    [legend] = figure.legends
    said = dict(text.get_text().split("\n") for text in legend.get_texts())
    assert said["perfect"] == "CPR 1.00, CMD 0.00"
    assert said["empty"] == "CPR 0.00, CMD 1.00"
    assert said["linear"] == "CPR 0.50, CMD 0.50"
    assert figure.axes[0].get_xscale() == "log"
    assert labels(figure, "x") == ["0.1 %", "1 %", "10 %", "100 %"]


def test_faithfulness_may_start_at_nothing() -> None:
    figure = faithfulness_curves((0.0, 0.01, 1.0), {"a": (0, 0.5, 1)})
    assert labels(figure, "x") == ["0 %", "1 %", "100 %"]


def test_bars_are_the_largest_first() -> None:
    figure = score_bars(["a", "b", "c"], [1.0, -3.0, 2.0], top=2)
    assert [label.get_text() for label in axes(figure).get_yticklabels()] == ["b", "c"]
    widths = [patch.get_width() for patch in axes(figure).patches]
    assert widths == [-3.0, 2.0]
    figure = score_bars(["a", "b", "c"], [1.0, -3.0, 2.0], errors=[0.1, 0.1, 0.1], top=2, ordered=False)
    assert [label.get_text() for label in axes(figure).get_yticklabels()] == ["b", "c"]


def test_layer_curves() -> None:
    series = {"probe": [0.5, 0.8, 0.9], "control": [0.5, 0.5, 0.5]}
    figure = layer_curves(series, layers=[0, 5, 10], bands={"probe": ([0.4, 0.7, 0.8], [0.6, 0.9, 1.0])}, chance=0.5)
    lines = {line.get_label(): line for line in axes(figure).lines}
    assert lines["probe"].get_xdata().tolist() == [0, 5, 10]
    assert lines["probe"].get_ydata().tolist() == [0.5, 0.8, 0.9]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["probe", "control"]


def test_attention_has_a_picture_a_head_on_one_scale(tmp_path: Path) -> None:
    """Keys after their query are blank, and so is what was masked."""
    patterns = np.abs(RNG.normal(size=(9, 4, 4)))
    figure = attention(patterns, TOKENS, what="Where they look", how="a model", path=tmp_path / "attention.png")
    shown = [axes(figure, i) for i in range(9)]
    assert [one.get_title(loc="right") for one in shown] == [f"head {i}" for i in range(9)]
    for pattern, one in zip(patterns, shown, strict=True):
        values = one.images[0].get_array()
        assert np.array_equal(values.mask, np.triu(np.ones((4, 4), dtype=bool), 1))
        assert np.array_equal(values.compressed(), pattern[np.tril_indices(4)])
    assert len({(one.images[0].norm.vmin, one.images[0].norm.vmax) for one in shown}) == 1
    keys, queries = ([t.get_text() for t in get()] for get in (shown[6].get_xticklabels, shown[6].get_yticklabels))
    assert keys == queries == ["When", "·Mary", "⏎", r"·\$a\$"]
    assert [len(one.get_xticklabels()) for one in shown] == [0] * 6 + [4] * 3, "three columns, labelled at the bottom"
    assert [len(one.get_yticklabels()) for one in shown] == [4, 0, 0] * 3
    assert [text.get_text() for text in figure.texts] == ["Where they look", "a model"]
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_some_heads_at_some_queries() -> None:
    scores = RNG.normal(size=(4, 2, 4))
    scores[:, 1, 0] = -np.inf  # past a window
    figure = attention(scores, TOKENS, heads=[3, 1], positions=[0, 2])
    assert [axes(figure, i).get_title(loc="right") for i in range(2)] == ["head 3", "head 1"]
    values = axes(figure).images[0].get_array()
    assert values.mask.tolist() == [[False, True, True, True], [True, False, False, True]]
    assert values[1, 2] == scores[3, 1, 2]
    assert [t.get_text() for t in axes(figure).get_yticklabels()] == ["When", "⏎"]
    assert axes(figure).images[0].norm.vmin == -axes(figure).images[0].norm.vmax, "scores diverge about 0"


def test_labels_of_long_prompts_do_not_run_into_each_other() -> None:
    tokens = [f" word{i}" for i in range(120)]
    figure = attention(np.full((1, 120, 120), 0.1), tokens)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes(figure).get_xticklabels()]
    assert len(boxes) == 40
    assert all(one.x1 <= other.x0 for one, other in itertools.pairwise(boxes))
    heights = [label.get_window_extent() for label in axes(figure).get_yticklabels()]
    assert all(one.y0 >= other.y1 for one, other in itertools.pairwise(heights))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: heat_map(GRID, ("a", "b")), "2 tokens for 4 positions"),
        (lambda: heat_map(GRID, layers=[1, 2]), "2 layers named for 6 rows"),
        (lambda: heat_map(GRID[0]), "must have 2 axes"),
        (lambda: attention(GRID, TOKENS), "must have 3 axes"),
        (lambda: attention(np.ones((2, 4, 4)), TOKENS[:3]), "3 tokens for 4 keys"),
        (lambda: attention(np.ones((2, 4, 4)), TOKENS, heads=[2]), r"heads \[2\] given; allowed: 0 … 1"),
        (lambda: attention(np.ones((2, 4, 4)), TOKENS, heads=[]), "at least one"),
        (lambda: attention(np.ones((65, 4, 4)), TOKENS), "65 heads are too many for one picture"),
        (lambda: attention(np.ones((2, 1, 4)), TOKENS), "1 queries for 4 keys.*say where the queries are"),
        (lambda: attention(np.ones((2, 1, 4)), TOKENS, positions=[4]), "are not all among 4 keys"),
        (lambda: heat_map([["a"]]), "must be numbers"),
        (lambda: heat_map(np.full((2, 2), np.nan)), "no finite number"),
        (lambda: heat_map(GRID, limit=0.0), "above 0"),
        (lambda: head_grid(np.zeros((0, 3))), "something in them"),
        (lambda: lens_table([["a"]], GRID, TOKENS), "do not match"),
        (lambda: faithfulness_curves((0.1, 1.0), {}), "no curve"),
        (lambda: faithfulness_curves((1.0, 0.1), {"a": (1, 1)}), "must ascend"),
        (lambda: faithfulness_curves((0.1, 1.0), {"a": (1, 1, 1)}), "3 points for 2 fractions"),
        (lambda: score_bars(["a"], [1.0, 2.0]), "do not match"),
        (lambda: layer_curves({}), "no series"),
        (lambda: layer_curves({"a": [1, 2]}, layers=[0]), "each of 1 layers"),
        (lambda: layer_curves({"a": [1, 2]}, bands={"b": ([0, 0], [1, 1])}), "bands without a series"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        draw()


def test_token_labels() -> None:
    assert readable(" to") == "·to"
    assert readable("") == "∅"
    assert readable("\x00a") == r"\x00a"
    assert readable(" 世") == r"·\u4e16", "DejaVu has no Chinese: rather a code than a box"
    assert readable("internationalisation") == "internati…tion"


def test_every_label_can_be_drawn_without_a_warning(tmp_path: Path) -> None:
    """Warnings are errors here: a glyph that the font lacks would be one, and so would unclosed mathematics."""
    odd = (" 世界", "\x1b[0m", "$x", "�", "🙂", "\u200b", r"\frac{")
    heat_map(RNG.normal(size=(2, 7)), odd, path=tmp_path / "odd.png")
    lens_table([odd], [np.zeros(7)], odd, path=tmp_path / "odd.svg")
    score_bars(odd[2:3], [1.0], path=tmp_path / "odd.pdf")


def test_the_caller_keeps_their_settings() -> None:
    before = dict(mpl.rcParams)
    figure = heat_map(GRID)
    assert dict(mpl.rcParams) == before
    assert figure.axes[0].xaxis.label.get_fontsize() == STYLE["font.size"]


def test_a_figure_shows_itself_in_a_notebook_and_pyplot_is_never_loaded() -> None:
    code = (
        "import sys, numpy as np\n"
        "from probewire.analysis.plots import heat_map\n"
        "picture = heat_map(np.eye(3))._repr_png_()\n"
        "assert picture.startswith(b'\\x89PNG')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_limits_of_zeros() -> None:
    assert limits(np.zeros((2, 2)), None)["vmax"] == 1.0


def test_long_titles_stay_inside_the_figure() -> None:
    how = "SmolLM2-135M-Instruct, random tokens repeated once, mean over 3 prompts, and more words than fit on a line"
    figure = head_grid(GRID, what="Heads that look for what came next the last time", how=how)
    figure.draw_without_rendering()
    width = figure.get_figwidth() * figure.dpi
    for text in (axes(figure).title, axes(figure)._left_title, *axes(figure).texts):
        assert text.get_window_extent().x1 <= width, text.get_text()
