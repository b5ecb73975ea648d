"""A line of JSON for each request that ended: who, which model, which sites, how much. No prompt text unless asked."""

from __future__ import annotations

import logging
import os
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import orjson

__all__ = ["Audit"]

log = logging.getLogger(__name__)


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
