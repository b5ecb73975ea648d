"""Batches straight from the server: no store, the next rows are computed while the last ones are trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ....clients import Client
from ....protos.errors import Cancelled, FailedPrecondition, InvalidArgument
from .collect import CALIBRATION_TOKENS
from .contexts import Contexts, Cursor
from .corpus import Texts, of
from .massive import DEFAULT_RULES, Rule, apply_rules, needs_median, rules_data
from .rows import INPUTS_A_REQUEST, Group, RowReader, Rows, joined
from .windows import Window, WindowedBatches

__all__ = ["WINDOW_ROWS", "LiveBatches"]

WINDOW_ROWS = 32_768


class LiveBatches(WindowedBatches):
    """Endless float32 batches of a site's activations over a corpus, which is read anew when it ends.

    Order: `window_rows` rows that follow one another in the corpus are shuffled together (`shuffle=False`: not), window
    after window. A thread fills the next window while this one is used (`ahead`): at most two are in memory, and the server works
    only as far ahead. What fails there is raised by the `next` that needs the window; `next` may then be called again.
    `state_dict` names the place in the corpus where the window begins: a resumed iteration computes that window again
    and goes on exactly, with the median of the first one. Use it in a `with`, or `close` it.

    Options as in `collect`. The manifest's "data_hash" is of the model, site, rules and the corpus's description; the
    texts themselves are checked by `load_state_dict`, through a hash of the documents before the window.
    """

    def __init__(
        self,
        client: Client,
        texts: Texts,
        site: str,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        window_rows: int = WINDOW_ROWS,
        context: int = 128,
        pack: bool = False,
        rules: Sequence[Rule] = DEFAULT_RULES,
        inputs_a_request: int = INPUTS_A_REQUEST,
        calibration_tokens: int = CALIBRATION_TOKENS,
        model: str = "",
        ahead: bool | None = None,
    ) -> None:
        """`ahead`: compute the next window while this one is used. None: unless the server computes on this machine's own
        CPU, where the two would only take turns at the cores, and spin while they wait.
        """
        if ahead is None:
            ahead = not (client.is_here and client.describe(model).device == "cpu")
        if type(window_rows) is not int or window_rows < 1:
            raise InvalidArgument(f"window_rows is 1 or more, got {window_rows!r}")
        self._reader = RowReader(Contexts(client, of(texts), context, pack, model), site, inputs_a_request)
        self._rules, self._window_rows, self._calibration = tuple(rules), window_rows, calibration_tokens
        self._median: float | None = None
        self._groups: Iterator[Group] | None = None
        self._at: dict[str, Any] = {}
        """Where the next row lies, in `_left` or behind it."""
        self._left = _NOTHING
        """Rows of the last request that no window has yet."""
        self._kept_in_epoch = 0
        self._stopping = False
        source: dict[str, Any] = {**self._reader.source(), "rules": rules_data(rules)}
        corpus = dict(self._reader.contexts.corpus.description)
        digest = hashlib.sha256(json.dumps([source, corpus], sort_keys=True, default=str).encode()).hexdigest()
        self.manifest: Mapping[str, Any] = {
            **source,
            "kind": "live",
            "corpus": {"description": corpus},
            "data_hash": digest,
        }
        identity = {"kind": "live", "window_rows": window_rows, **source}
        super().__init__(
            self._read,
            _place(0, Cursor(), 0),
            identity,
            d_in=source["d_in"],
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            ahead=ahead,
        )

    def _read(self, _number: int, place: Mapping[str, Any]) -> Window:
        try:
            if self._groups is None or place != self._at:
                self._seek(place)
            return self._window_from_here()
        except BaseException:
            self._groups = None  # a generator that raised would look like the corpus's end
            raise

    def _window_from_here(self) -> Window:
        parts: list[Rows] = []
        missing = self._window_rows
        while missing:
            while not len(self._left):
                self._next_group()
            ends = np.flatnonzero(self._left.kept)[:missing]
            stop = int(ends[-1]) + 1 if len(ends) == missing else len(self._left)
            taken, self._left = self._left[:stop], self._left[stop:]
            parts.append(taken[taken.kept])
            missing -= len(ends)
            self._at = {**self._at, "row": self._at["row"] + stop}
            self._kept_in_epoch += len(ends)
        return Window(joined(parts).values, self._at)

    def _next_group(self) -> None:
        """Put the next request's rows where the last ones were; at the corpus's end, begin it anew."""
        if self._stopping:
            raise Cancelled("these batches are closed")
        assert self._groups is not None
        group = next(self._groups, None)
        if group is None:
            if not self._kept_in_epoch:
                raise FailedPrecondition("the rules leave out every row of the corpus; give more text or other rules")
            self._kept_in_epoch = 0
            self._seek(_place(self._at["epoch"] + 1, Cursor(), 0))
            return
        self._take(group, 0)

    def _take(self, group: Group, skip: int) -> None:
        assert self._median is not None
        self._left = replace(group.rows, rules=apply_rules(self._rules, group.rows, self._median))[skip:]
        self._at = _place(self._at["epoch"], group.start, skip)

    def _seek(self, place: Mapping[str, Any]) -> None:
        """Stand at a place: at a request's start, or within its rows."""
        cursor = Cursor(int(place["document"]), int(place["offset"]), str(place["documents_hash"]))
        calibrate = needs_median(self._rules) and self._median is None
        if calibrate and cursor == Cursor():
            self._median, self._groups = self._reader.calibrated(self._calibration)
        else:
            self._median = self._reader.calibrated(self._calibration)[0] if calibrate else self._median or 0.0
            self._groups = self._reader.groups(cursor)
        self._left, self._at = _NOTHING, dict(place)
        if place["row"]:
            group = next(self._groups, None)
            if group is None or place["row"] > len(group.rows):
                raise FailedPrecondition("the corpus ends before the place that the state names; give the same corpus")
            self._kept_in_epoch = 1  # rows came before
            self._take(group, int(place["row"]))

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands, as `Batches` says."""
        return {**super().state_dict(), "median_norm": self._median}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where another iteration stood. Raises FailedPrecondition for other batches or other texts."""
        self._drop()
        self._groups, before = None, self._median
        self._median = state.get("median_norm")
        try:
            super().load_state_dict(state)
        except BaseException:
            self._median = before
            raise

    def close(self) -> None:
        """End the thread, once the request in flight is answered."""
        self._stopping = True
        super().close()


_NOTHING = Rows.of(np.empty((0, 1), dtype=np.float32))


def _place(epoch: int, cursor: Cursor, row: int) -> dict[str, Any]:
    """JSON-able: `row` rows into the request that begins at the cursor."""
    return {"epoch": epoch, **cursor.data(), "row": row}
