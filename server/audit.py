"""A line of JSON for each request that ended: who, which model, which sites, how much. No prompt text unless asked."""

from __future__ import annotations

import logging
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import orjson

__all__ = ["Audit"]

log = logging.getLogger(__name__)


class Audit:
    """Appends to a file; `None` as its path keeps no audit. A file that logrotate has moved is opened anew."""

    def __init__(self, path: Path | None, *, prompts: bool = False) -> None:
        self.prompts = prompts
        """Whether prompts are written too."""
        self._logger = logging.Logger("probewire.audit")
        self._handler: WatchedFileHandler | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handler = WatchedFileHandler(path, encoding="utf-8")
            path.chmod(0o600)
            self._logger.addHandler(self._handler)

    def write(self, **fields: Any) -> None:
        """One line; empty fields are left out."""
        if self._handler is not None:
            line = {"time": round(time.time(), 3)} | {k: v for k, v in fields.items() if v not in ("", None, (), [])}
            self._logger.info(orjson.dumps(line, default=str).decode())

    def close(self) -> None:
        """Let go of the file."""
        if self._handler is not None:
            self._handler.close()
