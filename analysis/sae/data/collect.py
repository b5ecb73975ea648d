"""From texts to a store of activations: read on the server, filtered by stated rules, written shard by shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ....clients import Client
from ....clients.progress import progress_bar
from ....protos.errors import FailedPrecondition, InvalidArgument
from .contexts import Contexts, Cursor
from .corpus import Texts, of
from .massive import DEFAULT_RULES, TIMES, MassiveDetector, MassiveReport, Rule, apply_rules, needs_median, rules_data
from .rows import INPUTS_A_REQUEST, Group, RowReader
from .store import ActivationStore, read_manifest
from .store_writer import MANIFEST, StoreWriter

__all__ = ["CALIBRATION_TOKENS", "collect", "detect_massive"]

CALIBRATION_TOKENS = 8192


def collect(
    client: Client,
    texts: Texts,
    site: str,
    folder: str | Path,
    *,
    context: int = 128,
    pack: bool = False,
    n_tokens: int | None = None,
    rules: Sequence[Rule] = DEFAULT_RULES,
    dtype: str = "auto",
    inputs_a_request: int = INPUTS_A_REQUEST,
    rows_per_shard: int | None = None,
    calibration_tokens: int = CALIBRATION_TOKENS,
    model: str = "",
    progress: bool = True,
) -> ActivationStore:
    """Store a site's activations over a corpus. Called again with the same arguments it goes on where it was stopped,
    and a finished store is given at once; a larger `n_tokens` adds to it.

    `context`, `pack`: how documents become sequences (`Contexts` says the rule). `n_tokens`: rows to keep; None: all
    that the corpus has. `rules`: which rows are left out; the median that `NormOverMedian` goes by is of the first
    `calibration_tokens` tokens, taken once and kept in the manifest. `dtype`: of the rows on the disk; auto: as the
    server computes them. A resumed collection sends the very requests that an uninterrupted one sends, so it gives the
    same store to the bit wherever the server gives equal answers to equal requests.

    Raises FailedPrecondition when the folder holds a store of another model, site or rule, when the corpus is not the
    one that it was begun with, and when it ends before `n_tokens` (the store is then complete, and holds all there is);
    InvalidArgument for empty or undecodable documents, with their place.
    """
    if n_tokens is not None and (type(n_tokens) is not int or n_tokens < 1):
        raise InvalidArgument(f"n_tokens is 1 or more, or None for the whole corpus; got {n_tokens!r}")
    rules_data(rules)
    folder = Path(folder)
    reader = RowReader(Contexts(client, of(texts), context, pack, model), site, inputs_a_request)
    writer = _writer(reader, folder, rules, dtype, rows_per_shard, calibration_tokens)
    if not (writer.complete and _has_all(reader, writer, n_tokens)):
        if writer.complete:
            writer.reopen()
        _fill(reader, writer, rules, n_tokens, calibration_tokens, progress)
    if n_tokens is not None and writer.n_tokens < n_tokens:
        raise FailedPrecondition(
            f"the corpus ended after {writer.n_tokens:,} of {n_tokens:,} tokens; {folder} is complete and holds them all: "
            "open it as it is, or collect with n_tokens=None"
        )
    return ActivationStore.open(folder)


def detect_massive(
    client: Client,
    texts: Texts,
    site: str,
    *,
    n_tokens: int = 4 * CALIBRATION_TOKENS,
    times: float = TIMES,
    context: int = 128,
    pack: bool = False,
    inputs_a_request: int = INPUTS_A_REQUEST,
    calibration_tokens: int = CALIBRATION_TOKENS,
    model: str = "",
) -> MassiveReport:
    """What massive rows a site has, over the first `n_tokens` tokens; nothing is stored or left out."""
    reader = RowReader(Contexts(client, of(texts), context, pack, model), site, inputs_a_request)
    median, groups = reader.calibrated(min(calibration_tokens, n_tokens))
    detector, seen = MassiveDetector(median, times), 0
    for group in groups:
        detector.update(group.rows[: n_tokens - seen])
        seen += len(group.rows)
        if seen >= n_tokens:
            break
    return detector.report()


def _writer(
    reader: RowReader,
    folder: Path,
    rules: Sequence[Rule],
    dtype: str,
    rows_per_shard: int | None,
    calibration_tokens: int,
) -> StoreWriter:
    source = reader.source()
    served = source.pop("dtype")
    if dtype == "auto":
        dtype = read_manifest(folder)["dtype"] if (folder / MANIFEST).is_file() else served
    return StoreWriter(
        folder,
        d_in=source.pop("d_in"),
        dtype=dtype,
        model_hash=source.pop("model_hash"),
        site=source.pop("site"),
        rules=rules_data(rules),
        rows_per_shard=rows_per_shard,
        identity={**source, "calibration_tokens": calibration_tokens if needs_median(rules) else None},
    )


def _has_all(reader: RowReader, writer: StoreWriter, n_tokens: int | None) -> bool:
    """Whether a finished store has what is asked for, once its corpus is known to be this one."""
    said = writer.manifest["corpus"]
    goes_on = reader.contexts.goes_on_after(Cursor(said["documents"], 0, said["hash"]))
    if n_tokens is not None and n_tokens < writer.n_tokens:
        raise FailedPrecondition(
            f"{writer.folder} already holds {writer.n_tokens:,} tokens, more than the {n_tokens:,} asked for; open it, or "
            "give another folder"
        )
    return n_tokens == writer.n_tokens or (said["exhausted"] and not goes_on)


def _fill(
    reader: RowReader,
    writer: StoreWriter,
    rules: Sequence[Rule],
    n_tokens: int | None,
    calibration_tokens: int,
    progress: bool,
) -> None:
    groups, skip = _groups(reader, writer, rules, calibration_tokens)
    median = float(writer.extra.get("median_norm", 0))
    exhausted, read = True, Cursor()
    with progress_bar(f"collecting {reader.site}", "tokens", show=progress) as bar:
        for group in groups:
            rows = replace(group.rows, rules=apply_rules(rules, group.rows, median))[skip:]
            wanted = np.flatnonzero(rows.kept)[: None if n_tokens is None else n_tokens - writer.n_tokens]
            full = n_tokens is not None and len(wanted) == n_tokens - writer.n_tokens
            if full:
                rows = rows[: int(wanted[-1]) + 1 if len(wanted) else 0]
            writer.append(rows, group.start.data(), first=skip)
            skip, read = 0, group.read
            bar(writer.n_tokens, n_tokens or 0)
            if full:
                exhausted = False
                break
    said = {"documents": read.document, "hash": read.documents_hash, "exhausted": exhausted}
    writer.finish({"corpus": {"description": dict(reader.contexts.corpus.description), **said}})


def _groups(
    reader: RowReader, writer: StoreWriter, rules: Sequence[Rule], calibration_tokens: int
) -> tuple[Iterator[Group], int]:
    """Groups from where the store ends, and how many rows of the first it has already."""
    cursor = writer.cursor
    if cursor is not None:
        skip = int(cursor.pop("row"))
        return reader.groups(Cursor(**cursor)), skip
    if not needs_median(rules):
        return reader.groups(), 0
    writer.extra["median_norm"], groups = reader.calibrated(calibration_tokens)
    return groups, 0
