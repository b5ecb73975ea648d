"""Documents of every source, bad ones refused with their place, and sequences that never cross a document unasked."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.data import corpus
from probewire.analysis.sae.data.contexts import Context, Contexts, Cursor
from probewire.clients import Client
from probewire.protos.errors import FailedPrecondition, InvalidArgument, NotFound

TEXTS = ["one two", "über drei", "four\nfive six"]
BOS = 256
"""And "a" is 64: the alphabet begins with "!"."""


def _texts(found: corpus.Corpus) -> list[str]:
    return [document.text for document in found]


def _write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))
    return path


def test_all_sources_give_the_same_documents(tmp_path: Path) -> None:
    datasets: Any = import_module("datasets")

    made = datasets.Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3]})
    made.save_to_disk(str(tmp_path / "saved"))
    made.to_parquet(tmp_path / "all.parquet")
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    for name, text in zip(("a.txt", "b/a.txt", "c.txt"), TEXTS, strict=True):
        (folder / name).write_text(text)
    (folder / "notes.md").write_text("no text of ours")
    sources: list[Any] = [
        _write_jsonl(tmp_path / "all.jsonl", TEXTS),
        folder,
        TEXTS,
        iter(TEXTS),
        tmp_path / "saved",
        str(tmp_path / "all.parquet"),
        next((tmp_path / "saved").glob("*.arrow")),
        corpus.dataset(made),
        corpus.dataset(made.to_iterable_dataset()),
        corpus.dataset(datasets.DatasetDict({"train": made})),
    ]
    for source in sources:
        assert _texts(corpus.of(source)) == TEXTS, source
        assert json.dumps(dict(corpus.of(source).description))
    assert _texts(corpus.of(folder / "c.txt")) == TEXTS[2:]


def test_a_path_is_read_as_it_is_said(tmp_path: Path) -> None:
    datasets: Any = import_module("datasets")
    made = datasets.Dataset.from_dict({"body": TEXTS})
    made.to_parquet(tmp_path / "all.parquet")
    datasets.DatasetDict({"test": made}).save_to_disk(str(tmp_path / "saved"))
    for path, options in (("all.parquet", {}), ("saved", {"split": "test"})):
        assert _texts(corpus.of(tmp_path / path, "body", **options)) == TEXTS


def test_a_parquet_file_can_be_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets: Any = import_module("datasets")

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(tmp_path / "all.parquet")
    assert _texts(corpus.dataset(tmp_path / "all.parquet", streaming=True)) == TEXTS


def test_iterations_begin_anew_but_iterators_are_read_once() -> None:
    found = corpus.of(TEXTS)
    assert _texts(found) == _texts(found)
    once = corpus.of(text for text in TEXTS)
    assert _texts(once) == TEXTS
    with pytest.raises(FailedPrecondition, match="was an iterator"):
        _texts(once)
    with pytest.raises(InvalidArgument, match="read once"):
        once.split()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"all.jsonl:2 is not UTF-8 at byte 24 \(0xff: invalid start byte\)"),
        (b'{"text": "a"}\n\n{"text": "b"}\n', "all.jsonl:2: the line is empty"),
        (b'{"text": "a"}\n{"text": " "}\n', "all.jsonl:2 is empty"),
        (b'{"text": "a"}\n{"text": 3}\n', "all.jsonl:2: no object with text in the field 'text'"),
        (b'{"body": "a"}\n', "all.jsonl:1: no object with text"),
        (b"[1]\n", "all.jsonl:1: no object with text"),
        (b"{text}\n", "all.jsonl:1: not JSON"),
        (b"", "holds no documents"),
    ],
)
def test_bad_jsonl_is_refused_with_its_place(tmp_path: Path, data: bytes, named: str) -> None:
    (tmp_path / "all.jsonl").write_bytes(data)
    with pytest.raises(InvalidArgument, match=named):
        _texts(corpus.of(tmp_path / "all.jsonl"))


def test_blank_records_are_passed_over_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text('\ufeff{"text": "a"}\n\n{"text": " "}\n{"text": "b"}\n')
    assert _texts(corpus.jsonl(path, skip_empty=True)) == ["a", "b"]


def test_bad_folders_are_refused_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"no file \*.txt in"):
        corpus.of(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"fine\nand n\xe9t\n")
    with pytest.raises(InvalidArgument, match=r"a.txt is not UTF-8 at byte 10, line 2 \(0xe9"):
        _texts(corpus.of(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(InvalidArgument, match=r"a.txt is empty"):
        _texts(corpus.of(tmp_path))
    (tmp_path / "b.txt").write_text("text")
    assert _texts(corpus.folder(tmp_path, skip_empty=True)) == ["text"]


def test_what_is_no_corpus_is_refused(tmp_path: Path) -> None:
    datasets: Any = import_module("datasets")

    with pytest.raises(NotFound, match="a list of texts"):
        corpus.of("a text where a path goes")
    with pytest.raises(InvalidArgument, match="holds no documents"):
        _texts(corpus.of([]))
    with pytest.raises(InvalidArgument, match=r"texts\[1\] is a int, not text"):
        _texts(corpus.of(["a", 3]))
    with pytest.raises(InvalidArgument, match="no field 'body'; its fields: text"):
        corpus.dataset(datasets.Dataset.from_dict({"text": TEXTS}), "body")
    with pytest.raises(InvalidArgument, match="no split 'train'; its splits: test"):
        corpus.dataset(datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": TEXTS})}))
    with pytest.raises(InvalidArgument, match="is empty"):
        _texts(corpus.dataset(datasets.Dataset.from_dict({"text": ["a", ""]})))
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidArgument, match="cannot be read as a dataset"):
        corpus.of(tmp_path / "x.parquet")
    (tmp_path / "x.bin").write_bytes(b"x")
    with pytest.raises(InvalidArgument, match=r"allowed are \.jsonl"):
        corpus.of(tmp_path / "x.bin")


def test_a_split_is_by_text_and_loses_nothing() -> None:
    many = [f"document {i % 150}" for i in range(300)]  # each text twice
    train, held_out = corpus.of(many).split(0.2, seed=3)
    sides = _texts(train), _texts(held_out)
    assert sorted([*sides[0], *sides[1]]) == sorted(many)
    assert not set(sides[0]) & set(sides[1])
    assert 30 <= len(sides[1]) <= 90
    assert _texts(corpus.of(many).split(0.2, seed=3)[1]) == sides[1]
    assert _texts(corpus.of(many).split(0.2, seed=4)[1]) != sides[1]
    assert train.description["split"] == {"side": "train", "held_out": 0.2, "seed": 3}
    with pytest.raises(InvalidArgument, match="between 0 and 1"):
        corpus.of(many).split(1.0)


def _pieces(contexts: list[Context]) -> list[str]:
    return ["".join("^" if i == BOS else chr(i + 33) for i in context.token_ids.tolist()) for context in contexts]


def test_documents_are_cut_and_never_crossed(client: Client) -> None:
    contexts = list(Contexts(client, corpus.of(["abcdefg", "hij", "k", "lmnopqr"]), 4).read())
    assert _pieces(contexts) == ["^abc", "defg", "^hij", "^k", "^lmn", "opqr"]
    assert _pieces(list(Contexts(client, corpus.of(["abcd"]), 4).read())) == ["^abc"], "one token is no sequence"
    assert all(len(set(context.documents.tolist())) == 1 for context in contexts)
    assert contexts[1].offsets.tolist() == [4, 5, 6, 7]


def test_packing_crosses_documents_and_says_which_token_is_whose(client: Client) -> None:
    contexts = list(Contexts(client, corpus.of(["abcdefg", "hij", "k", "lm"]), 5, pack=True).read())
    assert _pieces(contexts) == ["^abcd", "efg^h", "ij^k^", "lm"]
    assert contexts[1].documents.tolist() == [0, 0, 0, 1, 1]
    assert contexts[1].offsets.tolist() == [5, 6, 7, 0, 1]


@pytest.mark.parametrize("pack", [False, True])
def test_reading_goes_on_at_any_sequence(client: Client, pack: bool) -> None:
    texts = ["abcdefghi", "jk", "lmnopqrstuv", "w", "xyzab"]
    contexts = Contexts(client, corpus.of(texts), 4, pack)
    whole = list(contexts.read())
    for i, context in enumerate(whole):
        again = list(contexts.read(context.start))
        assert _pieces(again) == _pieces(whole[i:])
        np.testing.assert_array_equal(again[0].offsets, context.offsets)
        assert again[-1].read == whole[-1].read
    assert not contexts.goes_on_after(whole[-1].read)
    assert Contexts(client, corpus.of([*texts, "more"]), 4, pack).goes_on_after(whole[-1].read)


def test_another_corpus_is_noticed(client: Client) -> None:
    whole = list(Contexts(client, corpus.of(["abcdef", "ghij", "kl"]), 4).read())
    changed = Contexts(client, corpus.of(["abcdeX", "ghij", "kl"]), 4)
    for cursor in (whole[2].start, whole[3].start):
        with pytest.raises(FailedPrecondition, match="not those that were read before"):
            list(changed.read(cursor))
    shorter = Contexts(client, corpus.of(["abcdef"]), 4)
    with pytest.raises(FailedPrecondition, match="ends after 1 documents"):
        list(shorter.read(whole[-1].start))
    with pytest.raises(FailedPrecondition, match="one more was begun"):
        list(shorter.read(whole[2].start))
    with pytest.raises(FailedPrecondition, match="not those"):
        changed.goes_on_after(whole[-1].read)
    with pytest.raises(FailedPrecondition, match="ends after 1"):
        shorter.goes_on_after(whole[-1].read)


@pytest.mark.parametrize("length", [1, 0, 513, 4.0])
def test_lengths_that_the_model_cannot_read_are_refused(client: Client, length: int) -> None:
    with pytest.raises(InvalidArgument, match=r"context is 2 … 512"):
        Contexts(client, corpus.of(TEXTS), length)


def test_the_start_is_a_cursor() -> None:
    assert Cursor() == Cursor(**Cursor().data())
