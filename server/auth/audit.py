"""A line of JSON for each request that ended: who, which model, which sites, how much. No prompt text unless asked."""

from __future__ import annotations

import logging
import os
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import orjson

from ...protos import probewire_pb2 as pb

__all__ = ["Audit", "prompt_of"]

log = logging.getLogger(__name__)

MAX_CHARS, MAX_IDS, MAX_MESSAGES = 20_000, 4_096, 256
"""Of one input in a line; what is cut says how much there was."""


def prompt_of(item: pb.Input) -> str | list[Any]:
    """What an input was, as the audit has it: its text, its messages as {role, content}, or its token ids."""
    if item.HasField("messages"):
        sent = item.messages.values
        most = MAX_CHARS // max(1, min(len(sent), MAX_MESSAGES))
        shown = [{"role": m.role[:100], "content": _cut(m.content, most)} for m in sent[:MAX_MESSAGES]]
        return shown if len(sent) <= MAX_MESSAGES else [*shown, f"… ({len(sent):,} messages)"]
    if item.HasField("token_ids"):
        ids = item.token_ids.values
        return list(ids) if len(ids) <= MAX_IDS else [*ids[:MAX_IDS], f"… ({len(ids):,} token ids)"]
    return _cut(item.text, MAX_CHARS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


class _PrivateFile(WatchedFileHandler):
    """For its owner alone, also after a rotation."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """`write` tells, without the line's prompts."""
        del record
        raise  # noqa: PLE0704 - called while the error is handled

    def _open(self) -> Any:
        opened = super()._open()
        os.fchmod(opened.fileno(), 0o600)
        return opened


class Audit:
    """Appends to a file; `None` as its path keeps no audit. A file that logrotate has moved is opened anew."""

    def __init__(self, path: Path | None, *, prompts: bool = False) -> None:
        self.prompts = prompts
        """Whether prompts are written too."""
        self._logger = logging.Logger("probewire.audit")
        self._handler: WatchedFileHandler | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handler = _PrivateFile(path, encoding="utf-8")
            self._logger.addHandler(self._handler)

    def write(self, **fields: Any) -> None:
        """One line; empty fields are left out."""
        if self._handler is not None:
            line = {"time": round(time.time(), 3)} | {k: v for k, v in fields.items() if v not in ("", None, (), [])}
            try:
                self._logger.info(orjson.dumps(line, default=str).decode())
            except OSError as error:  # no request fails for want of its audit line; the log tells
                told = {key: value for key, value in line.items() if key != "prompts"}
                log.error("the audit cannot be written: %s; lost: %s", error, told)

    def close(self) -> None:
        """Let go of the file."""
        if self._handler is not None:
            self._handler.close()
