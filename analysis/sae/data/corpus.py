"""Documents of text: a JSONL file, a folder of .txt files, a Hugging Face dataset, or texts in memory. Read lazily."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from ....protos.errors import FailedPrecondition, InvalidArgument, NotFound

__all__ = ["Corpus", "Document", "DocumentHash", "Texts", "dataset", "folder", "jsonl", "of", "texts"]


@dataclass(frozen=True, slots=True)
class Document:
    """One text, and where it lies."""

    text: str
    source: str
    """For people: "notes/a.txt", "all.jsonl:12", "wikitext[12]"."""


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Documents in a fixed order. Each iteration begins anew, unless the corpus was made of an iterator.

    Raises InvalidArgument, while it is read, at the first document that is empty or not UTF-8, with its place, and at
    the end of a corpus without documents.
    """

    read: Callable[[], Iterator[Document]]
    description: Mapping[str, Any]
    """What it is, JSON-able; goes into manifests."""
    once: bool = False
    """It was made of an iterator: it can be read only once."""

    def __iter__(self) -> Iterator[Document]:
        found = False
        for document in self.read():
            found = True
            yield document
        if not found:
            raise InvalidArgument(f"the corpus {_called(self.description)} holds no documents; give at least one")

    def split(self, held_out: float = 0.1, *, seed: int = 0) -> tuple[Corpus, Corpus]:
        """(train, held-out): each document goes to one side by a hash of its text and the seed.

        So the same text is on the same side wherever it occurs, and no document has to be counted first. The held-out
        side gets that share of documents in expectation; a side that gets none is refused when it is read.
        """
        if not 0 < held_out < 1:
            raise InvalidArgument(f"held_out is a share between 0 and 1, got {held_out}")
        if self.once:
            raise InvalidArgument("a corpus of an iterator can be read once, so it has no two sides; give a list")
        return self._side(held_out, seed, False), self._side(held_out, seed, True)

    def _side(self, share: float, seed: int, held: bool) -> Corpus:
        def read() -> Iterator[Document]:
            return (document for document in self if _is_held_out(document.text, share, seed) == held)

        said = {"side": "held out" if held else "train", "held_out": share, "seed": seed}
        return Corpus(read, {**self.description, "split": said})


Texts = Corpus | str | Path | Iterable[str]
"""A corpus; a path to a .jsonl, .txt, .parquet or .arrow file or a folder; or the texts themselves."""


def of(source: Texts, field: str = "text", *, split: str = "train", skip_empty: bool = False) -> Corpus:
    """The corpus that `source` stands for; a text alone is taken for a path, so put texts in a list.

    `field`, `split` and `skip_empty` say how a path is read, where they apply.
    """
    if isinstance(source, Corpus):
        return source
    if not isinstance(source, (str, Path)):
        return texts(source)
    path = Path(source)
    if not path.exists():
        raise NotFound(
            f"no file or folder {str(source)[:200]!r}; give a path, a list of texts, or corpus.dataset(…) for one on the hub"
        )
    if path.suffix == ".jsonl":
        return jsonl(path, field, skip_empty=skip_empty)
    if path.is_dir() and not (path / "dataset_info.json").exists() and not (path / "dataset_dict.json").exists():
        return folder(path, skip_empty=skip_empty)
    if path.suffix == ".txt":
        return folder(path.parent, path.name, skip_empty=skip_empty)
    return dataset(path, field, split=split, skip_empty=skip_empty)


def texts(source: Iterable[str], name: str = "texts") -> Corpus:
    """Texts in memory, or any iterable of them. An iterator can be read only once."""
    once = isinstance(source, Iterator)
    used = False

    def read() -> Iterator[Document]:
        nonlocal used
        if once and used:
            raise FailedPrecondition(f"{name} was an iterator and is read; give a list, a file, or a fresh iterator")
        used = True
        return (_document(text, f"{name}[{i}]") for i, text in enumerate(source))

    return Corpus(read, {"kind": "texts", "name": name}, once)


def jsonl(path: str | Path, field: str = "text", *, skip_empty: bool = False) -> Corpus:
    """A JSON object a line, whose `field` is a document. `skip_empty` passes over blank lines and blank texts."""
    path = _existing(path)

    def read() -> Iterator[Document]:
        with path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                value = _record(_decoded(line, where, start), where, field, skip_empty)
                start += len(line)
                if value is not None:
                    yield _document(value, where)

    return Corpus(read, {"kind": "jsonl", "path": str(path), "field": field, "bytes": path.stat().st_size})


def folder(path: str | Path, pattern: str = "*.txt", *, skip_empty: bool = False) -> Corpus:
    """Every file below `path` whose name fits `pattern`, a document each, in the order of their paths."""
    path = _existing(path)
    files = sorted(file for file in path.rglob(pattern) if file.is_file())
    if not files:
        raise InvalidArgument(f"no file {pattern} in {path}; give another folder or pattern")

    def read() -> Iterator[Document]:
        for file in files:
            text = _decoded(file.read_bytes(), str(file), 0)
            if text.strip() or not skip_empty:
                yield _document(text, str(file))

    return Corpus(read, {"kind": "folder", "path": str(path), "pattern": pattern, "files": len(files)})


def dataset(
    source: Any,
    field: str = "text",
    *,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    skip_empty: bool = False,
) -> Corpus:
    """A Hugging Face dataset, a record a document: a loaded one, a local path, or a name on the hub.

    Local: a folder that `save_to_disk` wrote, or a .parquet or .arrow file, read where they lie and without a network.
    `streaming`: of a name on the hub, fetch as it is read. Needs the package `datasets`.
    """
    found, said = _opened(source, split, name, revision, streaming)
    columns = found.column_names
    if columns is not None and field not in columns:
        raise InvalidArgument(f"the dataset has no field {field!r}; its fields: {', '.join(columns)}")

    def read() -> Iterator[Document]:
        for i, record in enumerate(found):
            where = f"{said['name']}[{i}]"
            value = record.get(field)
            if not isinstance(value, str):
                raise InvalidArgument(f"{where}: field {field!r} is a {type(value).__name__}, not text")
            if value.strip() or not skip_empty:
                yield _document(value, where)

    fingerprint = str(getattr(found, "_fingerprint", "") or "")
    return Corpus(read, {"kind": "dataset", **said, "field": field, "fingerprint": fingerprint})


class DocumentHash:
    """A running SHA-256 over documents in order: tells whether a resumed collection reads the same texts."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, text: str) -> None:
        """Take one more document. Its length goes before it, so that boundaries count."""
        data = text.encode()
        self._digest.update(len(data).to_bytes(8, "little"))
        self._digest.update(data)

    def hexdigest(self) -> str:
        """Of the documents so far."""
        return self._digest.hexdigest()


def _opened(
    source: Any, split: str, name: str | None, revision: str | None, streaming: bool
) -> tuple[Any, dict[str, Any]]:
    try:
        datasets: Any = import_module("datasets")
    except ImportError:
        raise FailedPrecondition(
            "reading a Hugging Face dataset needs the package datasets: pip install datasets"
        ) from None
    if not isinstance(source, (str, Path)):
        found, said = source, {"name": type(source).__name__, "split": str(getattr(source, "split", "") or "")}
    elif Path(source).exists():
        found, said = _local(datasets, Path(source), streaming), {"name": str(source)}
    else:
        try:
            found = datasets.load_dataset(str(source), name, split=split, revision=revision, streaming=streaming)
        except (OSError, ValueError) as error:  # ConnectionError and datasets' own errors are among these
            raise NotFound(f"no dataset {str(source)!r} on the disk, and the hub gives none: {error}") from None
        said = {"name": str(source), "config": name or "", "split": split, "revision": revision or ""}
    if hasattr(found, "keys"):  # a DatasetDict
        if split not in found:
            raise InvalidArgument(f"the dataset has no split {split!r}; its splits: {', '.join(found)}")
        found, said = found[split], {**said, "split": split}
    return found, said


def _local(datasets: Any, path: Path, streaming: bool) -> Any:
    if streaming and path.suffix == ".parquet":
        return datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    try:
        if path.is_dir():
            return datasets.load_from_disk(str(path))
        if path.suffix == ".arrow":
            return datasets.Dataset.from_file(str(path))
        if path.suffix == ".parquet":  # not from_parquet: that copies the file into a cache
            table = import_module("pyarrow.parquet").read_table(path)
            return datasets.Dataset(table)
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        raise InvalidArgument(f"{path} cannot be read as a dataset: {error}") from None
    raise InvalidArgument(f"{path}: allowed are .jsonl, .txt, .parquet and .arrow files, and folders")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise NotFound(f"no file or folder {path}")
    return path


def _record(line: str, where: str, field: str, skip_empty: bool) -> str | None:
    if not line.strip():
        if skip_empty:
            return None
        raise InvalidArgument(f"{where}: the line is empty; remove it, or pass skip_empty=True")
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise InvalidArgument(f"{where}: not JSON: {error}") from None
    value: Any = cast("dict[str, Any]", record).get(field) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise InvalidArgument(
            f"{where}: no object with text in the field {field!r} (another is named by field=, --field): {line.strip()[:80]}"
        )
    return None if skip_empty and not value.strip() else value


def _decoded(data: bytes, where: str, start: int) -> str:
    """UTF-8, without its byte order mark. `start`: where the bytes begin in their file."""
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        at = f"byte {start + error.start}" + ("" if start or line == 1 else f", line {line}")
        raise InvalidArgument(
            f"{where} is not UTF-8 at {at} (0x{data[error.start]:02x}: {error.reason}); convert it first, for example with iconv"
        ) from None


def _document(text: Any, source: str) -> Document:
    if not isinstance(text, str):
        raise InvalidArgument(f"{source} is a {type(text).__name__}, not text")
    if not text.strip():
        raise InvalidArgument(f"{source} is empty; remove it (files and datasets: or pass skip_empty=True)")
    return Document(text, source)


def _is_held_out(text: str, share: float, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "little") < share * 2**64


def _called(description: Mapping[str, Any]) -> str:
    return str(description.get("path") or description.get("name") or description["kind"])
