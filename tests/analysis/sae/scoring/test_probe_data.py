"""Texts for probing: as many as asked for, all different, by the seed, with no telling word on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from probewire.analysis.sae.scoring import probe_data
from probewire.analysis.sae.scoring.probe_data import PAIRS, SETS, LabelledTexts, biographies, bundled, from_texts
from probewire.clients import InvalidArgument

FILE = json.loads(Path(probe_data.__file__).with_name("probe_texts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SETS)
def test_sets_are_as_asked_for(name: str) -> None:
    found = bundled(name, n_train=40, n_test=20)
    everything: list[str] = []
    for label in found.classes:
        assert len(found.train[label]) == 40
        assert len(found.test[label]) == 20
        everything += [*found.train[label], *found.test[label]]
    assert len(set(everything)) == len(everything), "a text tells one class, once"
    assert not any("{" in text and name != "code" for text in everything)
    assert not any("{{" in text for text in everything)
    assert bundled(name, n_train=40, n_test=20).train == found.train
    assert bundled(name, n_train=40, n_test=20, seed=1).train != found.train


@pytest.mark.parametrize("name", [name for name in SETS if name != "code"])
def test_no_telling_word_is_on_both_sides(name: str) -> None:
    found = bundled(name)
    for label, own in FILE["sets"][name]["classes"].items():
        train, test = " ".join(found.train[label]).lower(), " ".join(found.test[label]).lower()
        for words in own.values():
            known = [word for word in words[1::2] if any(word.lower() in other.lower() for other in words[0::2])]
            assert not [word for word in words[1::2] if word.lower() in train and word not in known]
            assert any(word.lower() in test for word in words[1::2])


def test_the_file_is_small_and_its_lists_even() -> None:
    assert Path(probe_data.__file__).with_name("probe_texts.json").stat().st_size < 300_000
    for data in FILE["sets"].values():
        for own in (data["shared"], *data["classes"].values()):
            for slot, words in own.items():
                assert len(words) % 2 == 0, slot
                assert len(set(words)) == len(words), slot


@pytest.mark.parametrize("pair", PAIRS)
def test_biographies_cross_profession_and_gender(pair: tuple[str, str]) -> None:
    found = biographies(pair, n_train=30, n_test=20)
    assert list(found) == [(profession, gender) for profession in pair for gender in ("male", "female")]
    for (_, gender), (train, test) in found.items():
        assert (len(train), len(test), len({*train, *test})) == (30, 20, 50)
        right, wrong = ("he", "she") if gender == "male" else ("she", "he")
        for text in (*train, *test):
            words = text.lower().replace(".", "").replace(",", "").split()
            assert right in words
            assert wrong not in words


def test_your_own_texts() -> None:
    texts = [f"text {i}" for i in range(40)]
    labels = ["even" if i % 2 == 0 else "odd" for i in range(40)]
    found = from_texts("parity", texts, labels)
    assert found.classes == ("even", "odd")
    assert (len(found.train["even"]), len(found.test["even"])) == (15, 5)
    assert sorted([*found.train["odd"], *found.test["odd"]]) == sorted(texts[1::2])
    assert "seed 0" in found.source


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="there are: topic"):
        bundled("colour")
    with pytest.raises(InvalidArgument, match="about 162 different texts, not 200"):
        bundled("occupation", n_train=200)
    with pytest.raises(InvalidArgument, match="no biographies of baker"):
        biographies(("baker", "nurse"))
    with pytest.raises(InvalidArgument, match="do not pair"):
        from_texts("x", ["a"], ["b", "c"])
    with pytest.raises(InvalidArgument, match="between 0 and 1"):
        from_texts("x", ["a"], ["b"], held_out=1.0)
    with pytest.raises(InvalidArgument, match="two classes or more"):
        LabelledTexts("x", {"a": ("1", "2")}, {"a": ("1", "2")}, "")
    with pytest.raises(InvalidArgument, match="fewer than 2 texts of b"):
        LabelledTexts("x", {"a": ("1", "2"), "b": ("3",)}, {"a": ("4", "5"), "b": ("6", "7")}, "")
